"""Functions and views follow the code through changes that CREATE OR REPLACE cannot make."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql
from sqlalchemy import text

from pgdefect.core.errors import Conflict, SchemaOutOfDate
from pgdefect.db.connection.engine import Database
from pgdefect.db.schema import sql_files as files
from pgdefect.db.schema.schema import check, upgrade


def execute(database: Database, *statements: str) -> None:
    with database.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


def stale(database: Database, *names: str) -> None:
    """As if these files had changed since the last upgrade."""
    with database.begin() as connection:
        connection.execute(
            text("UPDATE pgdefect.sql_file SET sha256 = 'before' WHERE name = ANY(:names)"),
            {"names": list(names)},
        )


@pytest.fixture
def grantee(database: Database) -> Iterator[str]:
    name = f"metabase_{database.url.rpartition('test_')[2].partition('?')[0]}"
    execute(database, f"CREATE ROLE {name}")
    yield name
    execute(database, f"DROP OWNED BY {name}", f"DROP ROLE {name}")


OLD_IMAGES = "CREATE VIEW defect.images AS SELECT 1 AS image_id, 'x'::text AS verdict"
OLD_CONFUSION = "CREATE VIEW defect.confusion AS SELECT image_id FROM defect.images"


def test_views_that_stand_on_each_other_are_made_again_with_their_rights(
    database: Database, grantee: str
) -> None:
    execute(
        database,
        "DROP VIEW defect.confusion, defect.defect_type_confusion, defect.images",
        OLD_IMAGES,
        OLD_CONFUSION,
        f"GRANT SELECT ON defect.images, defect.categories TO {grantee} WITH GRANT OPTION",
    )
    stale(database, "defect/images.sql")
    assert upgrade(database).sql_files == ("defect/images.sql",)
    assert check(database).ok
    with database.connect() as connection:
        connection.execute(text("SELECT known_label, vote FROM defect.images"))
        connection.execute(text("SELECT rate_interval FROM defect.confusion"))
        rights = connection.execute(
            text(
                "SELECT relname::text, privilege_type, is_grantable FROM pg_class, "
                "aclexplode(relacl) a WHERE grantee = CAST(:role AS regrole) ORDER BY 1"
            ),
            {"role": grantee},
        ).all()
        commented = connection.scalar(text("SELECT col_description('defect.images'::regclass, 1)"))
    assert [tuple(row) for row in rights] == [
        ("categories", "SELECT", True),
        ("images", "SELECT", True),
    ]
    assert commented


def test_a_function_that_views_stand_on_may_change_its_result(database: Database) -> None:
    execute(
        database,
        "DROP VIEW defect.categories, defect.confusion, defect.defect_type_confusion, "
        "defect.daily_rejects",
        "DROP FUNCTION defect.rate_interval",
        "CREATE FUNCTION defect.rate_interval(count bigint, total bigint) RETURNS text "
        "LANGUAGE sql AS 'SELECT ''old'''",
        "CREATE VIEW defect.categories AS SELECT defect.rate_interval(1, 2) AS category",
    )
    stale(database, "defect/rate_interval.sql")
    assert upgrade(database).sql_files == ("defect/rate_interval.sql",)
    assert check(database).ok
    with database.connect() as connection:
        found = connection.scalar(text("SELECT defect.rate_interval(0, 0) IS NULL"))
    assert found is True


def test_somebody_elses_view_is_never_dropped(database: Database) -> None:
    """Neither in their schema nor in ours: the upgrade says what stands in its way."""
    execute(
        database,
        "CREATE VIEW defect.my_report AS SELECT path FROM defect.images",
        "CREATE VIEW public.mine AS SELECT * FROM defect.my_report",
    )
    # Appended columns do not touch it.
    stale(database, "defect/images.sql")
    upgrade(database)
    execute(
        database,
        "DROP VIEW public.mine, defect.my_report, defect.confusion, "
        "defect.defect_type_confusion, defect.images",
        OLD_IMAGES,
        "CREATE VIEW defect.my_report AS SELECT verdict FROM defect.images",
    )
    stale(database, "defect/images.sql")
    with pytest.raises(Conflict, match=r"defect\.my_report depends on view defect\.images"):
        upgrade(database)
    with database.connect() as connection:
        assert connection.scalar(text("SELECT verdict FROM defect.my_report")) == "x"
    execute(database, "DROP VIEW defect.my_report")
    upgrade(database)
    assert check(database).ok


def test_views_are_left_alone_where_only_functions_must_be_dropped(database: Database) -> None:
    """Somebody's view on one of ours outlives new arguments of a function, and lost files."""
    execute(
        database,
        "CREATE VIEW public.mine AS SELECT path, verdict FROM defect.images",
        "DROP FUNCTION defect.anomaly_map",
        "CREATE FUNCTION defect.anomaly_map(a text) RETURNS text LANGUAGE sql AS 'SELECT a'",
        "CREATE FUNCTION pgdefect.old_search() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
        "INSERT INTO pgdefect.sql_file (name, sha256) VALUES ('internal/old_search.sql', '')",
    )
    stale(database, "defect/anomaly_map.sql")
    changed = ("defect/anomaly_map.sql", "internal/old_search.sql")
    assert upgrade(database).sql_files == changed
    assert check(database).ok
    with database.connect() as connection:
        assert connection.execute(text("SELECT * FROM public.mine")).all() == []
        kinds = connection.scalar(
            text("SELECT count(*) FROM pg_proc WHERE proname IN ('anomaly_map', 'old_search')")
        )
    assert kinds == 1


def test_what_a_lost_file_made_goes(database: Database) -> None:
    execute(
        database,
        "CREATE FUNCTION pgdefect.old_search(a integer) RETURNS integer LANGUAGE sql AS 'SELECT 1'",
        "CREATE FUNCTION pgdefect.old_search(a text) RETURNS integer LANGUAGE sql AS 'SELECT 1'",
        "CREATE VIEW defect.old_view AS SELECT pgdefect.old_search(1)",
        "INSERT INTO pgdefect.sql_file (name, sha256) VALUES "
        "('internal/old_search.sql', ''), ('defect/old_view.sql', '')",
    )
    assert not check(database).ok
    gone = ("defect/old_view.sql", "internal/old_search.sql")
    assert upgrade(database).sql_files == gone
    assert check(database).ok
    with database.connect() as connection:
        left = connection.scalar(
            text(
                "SELECT (SELECT count(*) FROM pg_proc WHERE proname = 'old_search') "
                "+ (SELECT count(*) FROM pg_class WHERE relname = 'old_view')"
            )
        )
    assert left == 0


def test_a_file_with_a_fault_changes_nothing(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files.sql_files()
    broken = files.SqlFile("defect/images.sql", "CREATE OR REPLACE VIEW defect.images AS SELEKT")
    monkeypatch.setattr(files, "sql_files", lambda: [broken, *before])
    with pytest.raises(psycopg.errors.SyntaxError):
        upgrade(database)
    monkeypatch.undo()
    assert check(database).ok


@settings(
    deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(word=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_a_word_for_the_shell_is_pythons(database: Database, word: str) -> None:
    with database.connect() as connection:
        found = connection.scalar(text("SELECT pgdefect.shell_word(:word)"), {"word": word})
    assert found == shlex.quote(word)


def test_every_file_makes_the_object_it_is_named_for() -> None:
    *made, comments = files.sql_files()
    assert (comments.name, comments.objects) == ("column_comments.sql", [])
    for file in made:
        [(schema, name)] = file.names
        folder = {"defect": "defect", "pgdefect": "internal"}[schema]
        assert file.name == f"{folder}/{name}.sql"


FIRST = "CREATE OR REPLACE VIEW defect.{} AS SELECT {} AS n -- not defect.z, nor {}"
BY_NAME = [
    FIRST.format("a", "1 + n", "'defect.z'") + " \nFROM defect.b",
    FIRST.format("b", "2 + n", "'defect.z'") + " \nFROM defect.c()",
    "CREATE OR REPLACE FUNCTION defect.c() RETURNS SETOF defect.d LANGUAGE sql AS $$ "
    "SELECT * FROM defect.d, defect.a $$",
    FIRST.format("d", "'-- it''s defect.z'", "defect.z"),
]


@pytest.mark.parametrize("texts", [BY_NAME, BY_NAME[::-1]])
def test_a_file_runs_after_those_it_needs(texts: list[str]) -> None:
    made = [files.SqlFile(f"defect/{number}.sql", one) for number, one in enumerate(texts)]
    ordered = files.in_order([files.SqlFile("column_comments.sql", "SELECT 1"), *made])
    assert [sorted(file.names) for file in ordered] == [
        [("defect", name)] for name in ("d", "c", "b", "a")
    ] + [[]]


def test_functions_may_call_what_comes_later(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bodies are checked, but not before everything is there."""
    made = files.sql_files()
    body = "CREATE OR REPLACE FUNCTION defect.{} RETURNS bigint LANGUAGE sql AS $$ SELECT {} $$"
    first = files.SqlFile("defect/a.sql", body.format("a(n bigint)", "max(z) FROM defect.z(n)"))
    then = files.SqlFile("defect/z.sql", body.format("z(n bigint)", "n + 1"))
    monkeypatch.setattr(files, "sql_files", lambda: [first, *made, then])
    upgrade(database)
    with database.connect() as connection:
        assert connection.scalar(text("SELECT defect.a(1)")) == 2
    broken = files.SqlFile("defect/a.sql", body.format("a(n bigint)", "defect.gone(n)"))
    monkeypatch.setattr(files, "sql_files", lambda: [broken, *made, then])
    with pytest.raises(SchemaOutOfDate, match=r"defect\.gone"):
        upgrade(database)
    with database.connect() as connection:
        assert connection.scalar(text("SELECT defect.a(1)")) == 2


def test_files_of_the_old_names_are_replaced(database: Database, grantee: str) -> None:
    """Version 0.1 called them functions/20_find_image.sql and views/30_images.sql."""
    execute(
        database,
        "CREATE VIEW public.mine AS SELECT path, verdict FROM defect.images",
        f"GRANT SELECT ON defect.images TO {grantee}",
        "CREATE FUNCTION pgdefect.nearest_images() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
        "UPDATE pgdefect.sql_file SET name = regexp_replace(name, '^.*/', 'functions/20_')",
        "INSERT INTO pgdefect.sql_file VALUES ('functions/12_nearest_images.sql', '')",
    )
    assert "sql/functions/20_find_image.sql is gone from the code" in check(database).differences
    applied = upgrade(database).sql_files
    assert {"defect/find_image.sql", "functions/20_find_image.sql"} < set(applied)
    assert check(database).ok
    with database.connect() as connection:
        assert connection.execute(text("SELECT * FROM public.mine")).all() == []
        assert connection.scalar(text("SELECT to_regproc('pgdefect.nearest_images') IS NULL"))
        assert connection.scalar(
            text("SELECT has_table_privilege(:role, 'defect.images', 'SELECT')"), {"role": grantee}
        )


def test_names_are_quoted_where_they_must_be(database: Database) -> None:
    """A role with a name that needs quotes keeps its rights."""
    role = f'Line "{database.url.rpartition("test_")[2].partition("?")[0]}"'
    quoted = sql.Identifier(role)
    with database.autocommit() as connection:
        connection.execute(sql.SQL("CREATE ROLE {}").format(quoted))
        connection.execute(sql.SQL("GRANT SELECT ON defect.banks TO {}").format(quoted))
        connection.execute("INSERT INTO pgdefect.sql_file VALUES ('defect/gone.sql', '')")
    try:
        upgrade(database)
        with database.connect() as connection:
            assert connection.scalar(
                text("SELECT has_table_privilege(:role, 'defect.banks', 'SELECT')"),
                {"role": role},
            )
    finally:
        with database.autocommit() as connection:
            connection.execute(sql.SQL("DROP OWNED BY {}").format(quoted))
            connection.execute(sql.SQL("DROP ROLE {}").format(quoted))
