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

from pgdefect.core.errors import Conflict
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
    stale(database, "views/30_images.sql")
    assert upgrade(database).sql_files == ("views/30_images.sql",)
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
    stale(database, "functions/15_rate_interval.sql")
    assert upgrade(database).sql_files == ("functions/15_rate_interval.sql",)
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
    stale(database, "views/30_images.sql")
    upgrade(database)
    execute(
        database,
        "DROP VIEW public.mine, defect.my_report, defect.confusion, "
        "defect.defect_type_confusion, defect.images",
        OLD_IMAGES,
        "CREATE VIEW defect.my_report AS SELECT verdict FROM defect.images",
    )
    stale(database, "views/30_images.sql")
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
        "INSERT INTO pgdefect.sql_file (name, sha256) VALUES ('functions/99_old_search.sql', '')",
    )
    stale(database, "functions/28_anomaly_map.sql")
    changed = ("functions/28_anomaly_map.sql", "functions/99_old_search.sql")
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
        "('functions/99_old_search.sql', ''), ('views/99_old_view.sql', '')",
    )
    assert not check(database).ok
    gone = ("functions/99_old_search.sql", "views/99_old_view.sql")
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
    before = list(files.sql_files())
    broken = files.SqlFile("views/30_images.sql", "CREATE OR REPLACE VIEW defect.images AS SELEKT")
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
    for file in files.sql_files():
        if file.objects:
            [(kind, _, name)] = file.objects
            assert file.name.endswith(f"_{name}.sql"), file.name
            assert file.is_view == (kind == "VIEW")


def test_names_are_quoted_where_they_must_be(database: Database) -> None:
    """A role with a name that needs quotes keeps its rights."""
    role = f'Line "{database.url.rpartition("test_")[2].partition("?")[0]}"'
    quoted = sql.Identifier(role)
    with database.autocommit() as connection:
        connection.execute(sql.SQL("CREATE ROLE {}").format(quoted))
        connection.execute(sql.SQL("GRANT SELECT ON defect.banks TO {}").format(quoted))
        connection.execute("INSERT INTO pgdefect.sql_file VALUES ('views/99_gone.sql', '')")
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
