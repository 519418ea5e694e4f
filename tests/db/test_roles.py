"""What reader and writer may do, and that it is all they may do."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from guarded import (
    RESET,
    Clone,
    as_leather,
    as_login,
    database_name,
    drop_groups,
    roles_of,
    session,
)
from psycopg import errors as pg
from psycopg import sql
from sqlalchemy import text

from pgdefect.core.errors import Conflict, NotFound, PermissionDenied, UsageError
from pgdefect.core.types import ExtractorArtifact, ExtractorSpec
from pgdefect.db.access.grants import NAME_BYTES, WRITER_CALLS, WRITER_MAY, group_name
from pgdefect.db.access.logins import add_login, drop_login, list_logins
from pgdefect.db.access.roles import missing, require_owner, setup
from pgdefect.db.connection.engine import Database
from pgdefect.db.records.extractors import store_extractor
from pgdefect.db.schema.schema import check, upgrade
from pgdefect.db.server.embedded import EmbeddedServer

READER, WRITER = "an analyst", 'Line "1"'
OWNER_ONLY = {
    "alembic_version",
    "audit",
    "audit_head",
    "detector_threshold",
    "review",
    "review_withdrawal",
    "defect_space",
    "detector_model",
    "extractor",
    "holdout_score",
    "memory_bank",
    "memory_bank_patch",
    "memory_bank_raw",
    "search_setting",
    "sql_file",
}


@pytest.fixture(scope="module")
def guarded(clone_of: Clone, _trained_template: Database) -> Iterator[Database]:
    """A trained database with a reader and a writer; the tests leave it as it is."""
    with clone_of(_trained_template) as database:
        as_leather(database)
        with roles_of(database, **{READER: "reader", WRITER: "writer"}):
            yield database


def tables(database: Database, kinds: str = "rp") -> list[str]:
    with database.connect() as connection:
        return list(
            connection.scalars(
                text(
                    "SELECT relname FROM pg_class WHERE relnamespace = 'pgdefect'::regnamespace "
                    "AND relkind = ANY (:kinds) ORDER BY 1"
                ),
                {"kinds": list(kinds)},
            )
        )


# -- what must fail ------------------------------------------------------------------------


def test_reader_can_write_to_no_table(guarded: Database) -> None:
    names = tables(guarded)
    assert "memory_bank_patch_1" in names
    with session(guarded, READER, RESET) as connection:
        for name in names:
            for statement in (
                f"INSERT INTO pgdefect.{name} DEFAULT VALUES",
                f"DELETE FROM pgdefect.{name}",
                f"TRUNCATE pgdefect.{name}",
                f"SELECT FROM pgdefect.{name} FOR SHARE",
                f"LOCK TABLE pgdefect.{name} IN ROW SHARE MODE",
                f"COPY pgdefect.{name} FROM STDIN",
                f"ALTER TABLE pgdefect.{name} ADD COLUMN x integer",
                f"DROP TABLE pgdefect.{name}",
                f"VACUUM pgdefect.{name}",
                f"CREATE INDEX ON pgdefect.{name} ((1))",
            ):
                if statement.startswith("VACUUM"):  # skips with a warning what is another's
                    notices: list[str] = []
                    connection.add_notice_handler(
                        lambda n, into=notices: into.append(n.message_primary or "")
                    )
                    connection.execute(statement)
                    assert "permission denied" in notices[0], name
                    continue
                # LOCK needs a transaction; refusal comes first.
                with pytest.raises(pg.InsufficientPrivilege), connection.transaction():
                    connection.execute(statement)
        with pytest.raises(pg.InsufficientPrivilege):
            connection.execute("UPDATE pgdefect.detector SET threshold = 9")


FORBIDDEN = {
    "table": "CREATE TABLE public.mine (x integer)",
    "table in ours": "CREATE TABLE pgdefect.mine (x integer)",
    "temporary table": "CREATE TEMP TABLE mine (x integer)",
    "temporary copy": "CREATE TEMP TABLE mine AS SELECT * FROM pgdefect.memory_bank_patch",
    "view": "CREATE VIEW defect.mine AS SELECT 1",
    "function": "CREATE FUNCTION public.f() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
    "function of the session": "CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS ''",
    "schema": "CREATE SCHEMA mine",
    "extension": "CREATE EXTENSION pg_trgm",
    "role": "CREATE ROLE mine",
    "database": "CREATE DATABASE mine",
    "publication": "CREATE PUBLICATION mine",
    "be the owner": "SET ROLE pgdefect",
    "authorization": "SET SESSION AUTHORIZATION pgdefect",
    "be a writer": 'SET ROLE "Line ""1"""',
    "let others in": 'GRANT "an analyst" TO pg_monitor',
    "own limit": 'ALTER ROLE "an analyst" CONNECTION LIMIT 100',
    "own temporary files": "SET temp_file_limit = -1",
    "own temporary files for ever": 'ALTER ROLE "an analyst" SET temp_file_limit = -1',
    "settings of others": 'ALTER ROLE "Line ""1""" SET statement_timeout = 1',
    "password of others": "ALTER ROLE pgdefect PASSWORD 'x'",
    "settings of the database": "ALTER DATABASE {database} SET work_mem = '1GB'",
    "settings of the server": "ALTER SYSTEM SET fsync = off",
    "reload": "SELECT pg_reload_conf()",
    "end others": "SELECT pg_terminate_backend({owner_pid})",
    "cancel others": "SELECT pg_cancel_backend({owner_pid})",
    "reset statistics": "SELECT pg_stat_reset()",
    "read a file": "SELECT pg_read_file('PG_VERSION')",
    "read bytes": "SELECT pg_read_binary_file('/etc/passwd')",
    "list a directory": "SELECT pg_ls_dir('.')",
    "stat a file": "SELECT pg_stat_file('PG_VERSION')",
    "COPY to a file": "COPY (SELECT 1) TO '/tmp/pgdefect-mine'",
    "COPY to a program": "COPY (SELECT 1) TO PROGRAM 'cat'",
    "passwords": "SELECT rolpassword FROM pg_authid",
    "host rules": "SELECT * FROM pg_hba_file_rules",
    "load a library": "LOAD '/tmp/mine.so'",
    "untrusted language": "CREATE FUNCTION public.f() RETURNS int LANGUAGE c AS 'libc', 'getpid'",
    "large object": "SELECT lo_create(0)",
    "old large object": "SELECT lo_creat(-1)",
    "filled large object": "SELECT lo_from_bytea(0, '\\x00')",
    "imported large object": "SELECT lo_import('/etc/passwd')",
    "log volume": "SELECT pg_logical_emit_message(false, 'x', repeat('x', 1000))",
    "slot": "SELECT pg_create_physical_replication_slot('mine')",
    "lock of training": "SELECT pg_advisory_lock(hashtextextended('pgdefect training of x', 0))",
    "lock of upgrades": "SELECT pg_advisory_xact_lock(hashtextextended('pgdefect db upgrade', 0))",
    "tried lock": "SELECT pg_try_advisory_lock(1, 2)",
    "shared lock": "SELECT pg_try_advisory_xact_lock_shared(1)",
    "threshold": "SELECT * FROM defect.set_threshold('leather', 0.2)",
    "threshold by rule": "SELECT s.* FROM defect.threshold_for(1, 0.1) t, "
    "defect.set_threshold('leather', t.threshold) s",
    "judging again": "SELECT defect.rejudge(1)",
    "review": "SELECT defect.review('1', 'normal')",
    "withdrawal": "SELECT defect.withdraw_review(1)",
    "trail": "SELECT pgdefect.record_audit('x', 'x', NULL, NULL)",
    "sequence": "SELECT nextval('pgdefect.image_id_seq')",
}


@pytest.mark.parametrize("statement", FORBIDDEN.values(), ids=FORBIDDEN.keys())
def test_reader_may_not(guarded: Database, statement: str) -> None:
    with (
        psycopg.connect(guarded.url) as owner,
        session(guarded, READER, RESET) as connection,
    ):
        words = statement.replace("{owner_pid}", str(owner.info.backend_pid)).replace(
            "{database}", database_name(guarded)
        )
        with pytest.raises(pg.InsufficientPrivilege):
            connection.execute(words)
        assert owner.execute("SELECT 1").fetchone() == (1,)


def test_reader_can_pass_nothing_on(guarded: Database) -> None:
    with session(guarded, READER, RESET) as connection:
        connection.execute("GRANT SELECT ON pgdefect.image TO PUBLIC")  # only a warning
        row = connection.execute(
            "SELECT count(*) FROM pg_class, aclexplode(relacl) a "
            "WHERE relnamespace = 'pgdefect'::regnamespace AND a.grantee = 0"
        ).fetchone()
    assert row == (0,)


def test_what_a_reader_can_take_back_is_only_courtesy(guarded: Database) -> None:
    """docs/roles.md says so; should Postgres change, it must too."""
    with session(guarded, READER) as connection:
        for name, value in {
            "statement_timeout": "5min",
            "work_mem": "64MB",
            "default_transaction_read_only": "on",
            "temp_file_limit": "2GB",
        }.items():
            assert connection.execute(f"SHOW {name}").fetchone() == (value,)
        for name in ("statement_timeout", "work_mem", "default_transaction_read_only"):
            connection.execute(f"SET {name} TO DEFAULT")
            connection.execute(f"SET {name} TO {'off' if 'only' in name else 65536}")


def test_what_readers_and_writers_raise_does_not_reach_the_log(
    guarded: Database, server: EmbeddedServer
) -> None:
    log = server.status().log_file
    for name in (READER, WRITER):
        with session(guarded, name, RESET) as connection:
            for level in ("WARNING", "LOG", "EXCEPTION"):
                with suppress(pg.RaiseException):
                    connection.execute(f"DO $$BEGIN RAISE {level} 'flood by {level}'; END$$")
            with pytest.raises(pg.UndefinedFunction):
                connection.execute("SELECT flood_by_an_error()")
            with pytest.raises(pg.InsufficientPrivilege):
                connection.execute("SET log_min_messages = debug1")
            with pytest.raises(pg.InsufficientPrivilege):
                connection.execute("ALTER ROLE CURRENT_USER SET log_min_messages = debug1")
    with guarded.autocommit() as connection:
        connection.execute("DO $$BEGIN RAISE WARNING 'word of the owner'; END$$")
        assert connection.execute("SHOW max_notify_queue_pages").fetchone() == ("1024",)
    content = log.read_text(errors="replace")
    assert "word of the owner" in content
    assert "flood" not in content


def test_limits_of_a_reader_hold(guarded: Database) -> None:
    add_login(guarded, "busy", "reader", None, connection_limit=2)
    with guarded.autocommit() as connection:
        connection.execute("ALTER ROLE busy SET temp_file_limit = '1MB'")
    with session(guarded, "busy", RESET) as one, session(guarded, "busy"):
        with pytest.raises(psycopg.OperationalError, match="too many connections for role"):
            psycopg.connect(as_login(guarded, "busy").url)
        one.execute("SET work_mem = '64kB'")
        with pytest.raises(pg.ConfigurationLimitExceeded, match="temp_file_limit"):
            one.execute(
                "SELECT count(*) FROM (SELECT n FROM generate_series(1, 400000) n "
                "ORDER BY n DESC OFFSET 0) s"
            )
    drop_login(guarded, "busy")


WRITER_FORBIDDEN = {
    "drop": "DROP TABLE pgdefect.inspection",
    "truncate": "TRUNCATE pgdefect.inspection",
    "delete inspections": "DELETE FROM pgdefect.inspection",
    "delete images": "DELETE FROM pgdefect.image",
    "delete thresholds": "DELETE FROM pgdefect.detector_threshold",
    "threshold": "UPDATE pgdefect.detector SET threshold = 9",
    "rule": "UPDATE pgdefect.detector SET threshold_rule = '{}'",
    "center": "UPDATE pgdefect.detector SET score_center = 0",
    "history": "INSERT INTO pgdefect.detector_threshold (detector_id, threshold, score_center, "
    "rule) VALUES (1, 9, 0, '{}')",
    "forged history": "INSERT INTO pgdefect.detector_threshold (detector_id, threshold, "
    "score_center, rule, set_by, created_at) VALUES (1, 9, 0, '{}', 'boss', '2020-01-01')",
    "review": "INSERT INTO pgdefect.review (image_id, label) VALUES (1, 'normal')",
    "forged review": "INSERT INTO pgdefect.review (image_id, label, reviewer, created_at) "
    "VALUES (1, 'normal', 'boss', '2020-01-01')",
    "rewritten review": "UPDATE pgdefect.review SET reviewer = 'boss'",
    "withdrawal": "INSERT INTO pgdefect.review_withdrawal (review_id) VALUES (1)",
    "reviewed label": "UPDATE pgdefect.image SET reviewed_label = 'normal'",
    "time of an image": "UPDATE pgdefect.image SET created_at = '2020-01-01'",
    "score": "UPDATE pgdefect.inspection SET raw_score = 0",
    "normalized score": "UPDATE pgdefect.inspection SET normalized_score = 0",
    "threshold of an inspection": "UPDATE pgdefect.inspection SET threshold = 9",
    "map": "UPDATE pgdefect.inspection SET anomaly_map = '{{0}}'",
    "time of an inspection": "UPDATE pgdefect.inspection SET created_at = '2020-01-01'",
    "forged time": "INSERT INTO pgdefect.inspection (image_id, detector_id, raw_score, "
    "normalized_score, threshold, worst_row, worst_col, anomaly_map, search, created_at) "
    "VALUES (1, 1, 0, 0, 1, 0, 0, '{{0}}', 'hnsw', '2020-01-01')",
    "forged look": "INSERT INTO pgdefect.inspection (image_id, detector_id, raw_score, "
    "normalized_score, threshold, worst_row, worst_col, anomaly_map, search, inspected_at) "
    "VALUES (1, 1, 0, 0, 1, 0, 0, '{{0}}', 'hnsw', '2020-01-01')",
    "evaluations": "UPDATE pgdefect.evaluation SET metrics = '{}'",
    "trail": "INSERT INTO pgdefect.audit VALUES (1, now(), 'boss', 'x', 'x', NULL, NULL, '')",
    "trail rewritten": "UPDATE pgdefect.audit SET who = 'boss'",
    "trail deleted": "DELETE FROM pgdefect.audit",
    "trail's head": "UPDATE pgdefect.audit_head SET hash = ''",
    "trail by its function": "SELECT pgdefect.record_audit('x', 'x', NULL, NULL)",
    "no triggers": "SET session_replication_role = replica",
    "trigger": "ALTER TABLE pgdefect.detector DISABLE TRIGGER ALL",
    "rewrite history": "UPDATE pgdefect.detector_threshold SET threshold = 9",
    "bank": "UPDATE pgdefect.memory_bank SET ef_search = 1",
    "vectors": "DELETE FROM pgdefect.memory_bank_patch",
    "vectors of one bank": "DELETE FROM pgdefect.memory_bank_patch_1",
    "graph": "UPDATE pgdefect.extractor SET onnx = ''",
    "activate": "UPDATE pgdefect.detector SET active = false",
    "detach": "ALTER TABLE pgdefect.memory_bank_patch DETACH PARTITION "
    "pgdefect.memory_bank_patch_1",
    "column": "ALTER TABLE pgdefect.image ADD COLUMN x integer",
    "table": "CREATE TABLE pgdefect.mine (x integer)",
    "function": "CREATE OR REPLACE FUNCTION defect.rejudge(detector bigint, bank bigint) "
    "RETURNS bigint LANGUAGE sql AS 'SELECT 1'",
    "view": "DROP VIEW defect.images",
    "owner": "SET ROLE pgdefect",
    "file": "COPY (SELECT 1) TO PROGRAM 'cat'",
    "large object": "SELECT lo_create(0)",
    "revision": "UPDATE pgdefect.alembic_version SET version_num = 'x'",
}


def test_writers_malformed_json_is_refused(guarded: Database) -> None:
    with session(guarded, WRITER) as connection:
        for statement in (
            "UPDATE pgdefect.inspection SET vote = '[1]'",
            """UPDATE pgdefect.inspection SET vote = '{"counts": 3, "k": "x"}'""",
            "INSERT INTO pgdefect.evaluation (detector_id, threshold, split, normal_images, "
            "anomalous_images, metrics, settings) VALUES (1, 1, 'test', 1, 1, '[1]', '{}')",
        ):
            with pytest.raises(pg.CheckViolation):
                connection.execute(statement)


def test_views_survive_what_a_writer_put_into_figures(guarded: Database) -> None:
    with session(guarded, WRITER) as connection, connection.transaction(force_rollback=True):
        connection.execute(
            "INSERT INTO pgdefect.evaluation (detector_id, threshold, split, normal_images, "
            "anomalous_images, metrics, settings) VALUES (1, 1, 'test', 1, 1, "
            """'{"image_auroc": "x", "aupro": 1e999, "pixel_auroc": [1], "image_f1_max": 0.5}', """
            """'{"leaks": 3}')"""
        )
        connection.execute(
            """UPDATE pgdefect.inspection SET vote = """
            """'{"counts": {"x": 1}, "k": 1e999, "support": -1e999, "needed": 1}'"""
        )
        for view in tables_of_defect(guarded):
            connection.execute(sql.SQL("SELECT * FROM defect.{}").format(sql.Identifier(view)))
        row = connection.execute(
            "SELECT image_auroc, aupro, pixel_auroc, image_f1_max FROM defect.banks"
        ).fetchone()
    assert row == (None, None, None, 0.5)


def test_what_a_writer_says_carries_its_name_and_the_servers_time(guarded: Database) -> None:
    """By functions alone; and each is in the audit trail, whose hashes hold."""
    with session(guarded, WRITER) as connection, connection.transaction(force_rollback=True):
        # The trail is written at the end of a transaction, and this one has none.
        connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
        connection.execute("SELECT defect.set_threshold('leather', 0.31)")
        review = connection.execute("SELECT defect.review('1', 'anomalous')").fetchone()
        assert review is not None
        connection.execute("SELECT defect.withdraw_review(%s, 'by mistake')", review)
        assert connection.execute(
            "SELECT set_by, since > now() - interval '1 minute' FROM defect.thresholds "
            "WHERE in_force"
        ).fetchone() == (WRITER, True)
        assert connection.execute(
            "SELECT r.reviewer, r.withdrawn_by, r.in_force, i.known_label = i.label "
            "FROM defect.reviews r JOIN defect.images i USING (image_id) WHERE r.review_id = %s",
            review,
        ).fetchone() == (WRITER, WRITER, False, True)
        trail = connection.execute(
            "SELECT action, object, who, (after->>'threshold')::float8 FROM defect.audit_trail "
            "ORDER BY number DESC LIMIT 3"
        ).fetchall()
        assert trail[::-1] == [
            ("set threshold", "detector 1", WRITER, 0.31),
            ("review", "image 1", WRITER, None),
            ("withdraw review", f"review {review[0]}", WRITER, None),
        ]
        assert connection.execute("SELECT * FROM pgdefect.audit_faults()").fetchall() == []


@pytest.mark.parametrize("statement", WRITER_FORBIDDEN.values(), ids=WRITER_FORBIDDEN.keys())
def test_writer_may_not(guarded: Database, statement: str) -> None:
    with (
        session(guarded, WRITER) as connection,
        pytest.raises(pg.InsufficientPrivilege),
    ):
        connection.execute(statement)


def test_every_table_is_a_writers_or_the_owners(guarded: Database) -> None:
    """A new table belongs in `WRITER_MAY` or in the list above: decide which."""
    parents = {name for name in tables(guarded) if not re.search(r"_\d+$", name)}
    assert parents <= WRITER_MAY.keys() | OWNER_ONLY
    assert not WRITER_MAY.keys() & OWNER_ONLY


# -- what must work ------------------------------------------------------------------------


def examples(database: Database) -> dict[str, tuple[str, bool]]:
    """The example in each comment of schema defect, and whether it writes."""
    with database.connect() as connection:
        rows = connection.execute(
            text("""
            SELECT 'view ' || relname, obj_description(oid, 'pg_class') FROM pg_class
            WHERE relnamespace = 'defect'::regnamespace AND relkind = 'v'
            UNION ALL
            SELECT 'function ' || proname, obj_description(oid, 'pg_proc') FROM pg_proc
            WHERE pronamespace = 'defect'::regnamespace""")
        ).all()
    found = {}
    for name, comment in rows:
        example = comment.partition("Example: ")[2]
        if example:
            found[name] = (example, any(f"defect.{word}(" in example for word in WRITER_CALLS))
    return found


def test_reader_can_use_every_view_and_function_in_a_fresh_session(guarded: Database) -> None:
    found = examples(guarded)
    assert len(found) > 12
    assert sum(writes for _, writes in found.values()) >= 2
    for name, (statement, writes) in found.items():
        with session(guarded, READER) as connection:
            if writes:
                with pytest.raises(pg.InsufficientPrivilege):
                    connection.execute(statement)
            else:
                try:
                    connection.execute(statement)
                except psycopg.Error as error:
                    # It ran, and says that there is nothing of the kind here.
                    if error.sqlstate != "PD404":
                        raise AssertionError(name) from error
    for view in tables_of_defect(guarded):
        with session(guarded, READER) as connection:
            connection.execute(sql.SQL("SELECT * FROM defect.{}").format(sql.Identifier(view)))


def tables_of_defect(database: Database) -> list[str]:
    with database.connect() as connection:
        return list(
            connection.scalars(
                text("SELECT viewname::text FROM pg_views WHERE schemaname = 'defect'")
            )
        )


SEARCHES = [
    "SELECT * FROM defect.similar_images('scratch/003.png', k => 3)",
    'SELECT * FROM defect.similar_patches(bank => 1, "position" => 0, k => 3)',
    "SELECT n.* FROM pgdefect.memory_bank_patch p, "
    "pgdefect.nearest_bank_vectors(1, p.embedding, 3) n WHERE p.position = 0",
    "SELECT s.* FROM pgdefect.score_patches(1, ARRAY(SELECT embedding FROM "
    "pgdefect.memory_bank_patch ORDER BY position LIMIT 3)) s",
]


@pytest.mark.parametrize("statement", SEARCHES)
def test_search_settings_hold_for_a_readers_call_and_no_longer(
    guarded: Database, statement: str
) -> None:
    """In a session where the vector library, and with it the settings, is not known yet."""
    with session(guarded, READER) as connection, connection.transaction():
        assert connection.execute("SELECT current_setting('hnsw.ef_search', true)").fetchone() in [
            (None,),
            ("",),
        ]
        assert len(connection.execute(statement).fetchall()) == 3
        assert connection.execute(
            "SELECT current_setting('hnsw.ef_search'), current_setting('hnsw.iterative_scan')"
        ).fetchone() == ("40", "off")


def test_partitions_made_later_are_readable(guarded: Database) -> None:
    spec = ExtractorSpec("later", ("layer",), {"image_size": [64, 64]}, "nowhere", "0" * 64)
    number = store_extractor(guarded, ExtractorArtifact(spec, 3, 4, 4, b"no graph"))
    with session(guarded, READER) as connection:
        connection.execute(f"SELECT * FROM pgdefect.image_embedding_{number}")
    assert missing_statements(guarded) == []


def test_reader_may_look_at_its_own_plans_and_sessions(guarded: Database) -> None:
    with session(guarded, READER) as connection:
        connection.execute("EXPLAIN SELECT * FROM defect.images")
        connection.execute("SET statement_timeout = '1min'")
        with connection.cursor().copy("COPY (SELECT * FROM defect.images) TO STDOUT") as copy:
            assert b"".join(copy)


# -- making and unmaking them --------------------------------------------------------------


def missing_statements(database: Database) -> list[str]:
    with database.connect() as connection:
        return missing(connection)


def test_setup_again_does_nothing_and_upgrade_renews_what_was_lost(guarded: Database) -> None:
    assert setup(guarded).done == ()
    assert check(guarded).ok
    writer = sql.Identifier(group_name(database_name(guarded), "writer"))
    with guarded.autocommit() as connection:
        connection.execute("DROP FUNCTION defect.rejudge")
        connection.execute(sql.SQL("REVOKE INSERT ON pgdefect.image FROM {}").format(writer))
        connection.execute("UPDATE pgdefect.sql_file SET sha256 = '' WHERE name ~ 'rejudge'")
    assert len(missing_statements(guarded)) == 1
    assert upgrade(guarded).sql_files == ("defect/rejudge.sql",)
    assert missing_statements(guarded) == []
    with session(guarded, READER) as connection, pytest.raises(pg.InsufficientPrivilege):
        connection.execute("SELECT defect.rejudge(1)")
    with session(guarded, WRITER) as connection:
        assert connection.execute("SELECT defect.rejudge(1)").fetchone() == (0,)


def test_list_tells_owner_writers_and_readers(guarded: Database) -> None:
    found = {one.name: one for one in list_logins(guarded)}
    name = database_name(guarded)
    assert list(found) == ["pgdefect", f"{name}_writer", WRITER, f"{name}_reader", READER]
    assert [one.kind for one in found.values()] == ["owner", "writer", "writer"] + 2 * ["reader"]
    reader = found[READER]
    assert (reader.can_login, reader.connection_limit, reader.temp_file_limit) == (True, 10, "2GB")
    assert reader.beyond == ()
    with guarded.autocommit() as connection:
        connection.execute(sql.SQL("GRANT pg_read_all_stats TO {}").format(sql.Identifier(READER)))
    try:
        [reader] = [one for one in list_logins(guarded) if one.name == READER]
        assert reader.beyond == ("member of pg_read_all_stats",)
    finally:
        with guarded.autocommit() as connection:
            connection.execute(
                sql.SQL("REVOKE pg_read_all_stats FROM {}").format(sql.Identifier(READER))
            )


def test_dropping_a_login_ends_its_sessions(guarded: Database) -> None:
    add_login(guarded, "leaver", "reader", None)
    with session(guarded, "leaver") as connection:
        assert drop_login(guarded, "leaver") == 0
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    for name in ("leaver", "pgdefect", group_name(database_name(guarded), "reader")):
        with pytest.raises(NotFound, match="an analyst"):
            drop_login(guarded, name)


def test_login_with_something_of_its_own_is_kept(guarded: Database) -> None:
    add_login(guarded, "holder", "reader", None)
    with guarded.autocommit() as connection:
        connection.execute("GRANT SELECT ON pgdefect.image TO holder")
    with pytest.raises(Conflict, match='DROP OWNED BY "holder"'):
        drop_login(guarded, "holder")
    with guarded.autocommit() as connection:
        connection.execute("DROP OWNED BY holder")
    drop_login(guarded, "holder")


@pytest.mark.parametrize("name", ["", "pg_me", "public", "a\nb", " a", "ä" * 32, "none"])
def test_names_that_postgres_does_not_take_are_refused(guarded: Database, name: str) -> None:
    with pytest.raises(UsageError, match="a login's name has"):
        add_login(guarded, name, "reader", None)


def test_a_name_that_is_taken_is_not_given_twice(guarded: Database) -> None:
    with pytest.raises(Conflict, match=r'GRANT "test_\d+_reader" TO "pgdefect"'):
        add_login(guarded, "pgdefect", "reader", "x")


def test_password_reaches_the_server_as_a_verifier(guarded: Database) -> None:
    add_login(guarded, "secretive", "reader", "correct horse")
    with guarded.autocommit() as connection:
        row = connection.execute(
            "SELECT rolpassword FROM pg_authid WHERE rolname = 'secretive'"
        ).fetchone()
        assert row is not None
        assert row[0].startswith("SCRAM-SHA-256$")
    drop_login(guarded, "secretive")
    for password in ("", "a\nb", "a\0b"):
        with pytest.raises(UsageError, match="a password has"):
            add_login(guarded, "secretive", "reader", password)
    assert "secretive" not in {one.name for one in list_logins(guarded)}


def test_names_fit_and_differ_whatever_the_database_is_called() -> None:
    long = "d" * 63
    names = ["pgdefect", long, long[:-1] + "e", "ä" * 31, "pg_like", "db_pg_like", 'a"b; DROP']
    made = [group_name(name, kind) for name in names for kind in ("reader", "writer")]
    assert len({*made}) == len(made)
    assert all(len(name.encode()) <= NAME_BYTES and not name.startswith("pg_") for name in made)
    assert group_name("pgdefect", "reader") == "pgdefect_reader"


def test_a_database_of_an_odd_long_name(server: EmbeddedServer, database: Database) -> None:
    name = "x\"; DROP ROLE a; -- 'é' $do$ {0} %s" + "y" * 27
    assert len(name.encode()) == 63
    database.dispose()
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
                sql.Identifier(name), sql.Identifier(database_name(database))
            )
        )
    odd = Database(server.url().replace("/pgdefect?", f"/{quote(name, safe='')}?"))
    try:
        with roles_of(odd, **{'o\'reilly "x" %s {}': "reader"}):
            assert setup(odd).done == ()
            with session(odd, 'o\'reilly "x" %s {}') as connection:
                connection.execute("SELECT * FROM defect.images")
                with pytest.raises(pg.InsufficientPrivilege):
                    connection.execute("SELECT pg_advisory_lock(1)")
    finally:
        odd.dispose()
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE {} (FORCE)").format(sql.Identifier(name)))


# -- where we are not allowed to make them -------------------------------------------------


def test_a_strangers_role_of_the_name_is_left_alone(database: Database) -> None:
    name = group_name(database_name(database), "reader")
    with database.autocommit() as connection:
        connection.execute(f"CREATE ROLE {name} LOGIN")
    try:
        with pytest.raises(Conflict, match=rf"a role '{name}' exists already.*COMMENT ON ROLE"):
            setup(database)
        upgrade(database)
        with database.connect() as connection:
            assert not connection.scalar(
                text("SELECT has_table_privilege(:r, 'pgdefect.image', 'SELECT')"), {"r": name}
            )
    finally:
        drop_groups(database, name)


@pytest.mark.parametrize("may_make_roles", [False, True], ids=["plain", "CREATEROLE"])
def test_owner_without_the_rights_gets_statements_for_an_administrator(
    empty_database: Database, may_make_roles: bool
) -> None:
    name = database_name(empty_database)
    owner = f"owner_of_{name}"
    with empty_database.autocommit() as connection:
        connection.execute(f"CREATE ROLE {owner} LOGIN {'CREATEROLE' if may_make_roles else ''}")
        connection.execute(f"ALTER DATABASE {name} OWNER TO {owner}")
        connection.execute("CREATE EXTENSION vector")
    plain = as_login(empty_database, owner)
    try:
        upgrade(plain)
        with pytest.raises(NotFound, match="pgdefect db role setup"):
            add_login(plain, "reader_1", "reader", None)
        report = setup(plain)
        script = report.for_administrator
        assert any("REVOKE EXECUTE ON FUNCTION" in words for words in script)
        assert any("CREATE ROLE" in words for words in script) == (not may_make_roles)
        with empty_database.autocommit() as connection:
            for words in script:
                connection.execute(words)
        assert setup(plain).for_administrator == ()
        assert missing_statements(plain) == []
        login = add_login(plain, "reader_1", "reader", "x")
        assert login.made == may_make_roles
        assert any("temp_file_limit" in words for words in login.for_administrator)
        assert not any("SCRAM" in words for words in login.for_administrator)
        with empty_database.autocommit() as connection:
            for words in login.for_administrator:
                if not words.startswith("\\password"):
                    connection.execute(words)
        with session(empty_database, "reader_1", RESET) as connection:
            connection.execute("SELECT * FROM defect.images")
            for words in (
                "SELECT pg_advisory_lock(1)",
                "CREATE TEMP TABLE t ()",
                "SELECT lo_create(0)",
            ):
                with pytest.raises(pg.InsufficientPrivilege):
                    connection.execute(words)
        # The owner goes on as before: it locks, makes temporary tables, upgrades.
        with plain.lock("anything"), plain.autocommit() as connection:
            connection.execute("CREATE TEMP TABLE t ()")
        upgrade(plain)
        drop_login(empty_database, "reader_1")
    finally:
        plain.dispose()
        drop_groups(
            empty_database, "reader_1", group_name(name, "writer"), group_name(name, "reader")
        )
        with empty_database.autocommit() as connection:
            connection.execute(f"ALTER DATABASE {name} OWNER TO pgdefect")
            connection.execute(f"REASSIGN OWNED BY {owner} TO pgdefect")
        drop_groups(empty_database, owner)


def test_only_the_owner_trains(guarded: Database) -> None:
    require_owner(guarded, "training")
    for name in (READER, WRITER):
        other = as_login(guarded, name)
        with pytest.raises(PermissionDenied, match=r"makes and drops tables.*'pgdefect'"):
            require_owner(other, "training")
        other.dispose()


# -- dumps ---------------------------------------------------------------------------------


def test_dumps_are_restored_where_the_roles_are_not(
    database: Database, clone_of: Clone, server: EmbeddedServer, tmp_path: Path
) -> None:
    with database.begin() as connection:
        connection.execute(text("INSERT INTO pgdefect.category (name) VALUES ('leather')"))
    dumps = {}
    with roles_of(database, dumped="reader"):
        for name, options in {"all": [], "bare": ["--no-owner", "--no-privileges"]}.items():
            done = subprocess.run(
                [server.bin_dir / "pg_dump", *options, database.url],
                capture_output=True,
                text=True,
                check=True,
            )
            dumps[name] = done.stdout
            assert "CREATE ROLE" not in done.stdout
            assert ("_reader" in done.stdout) == (name == "all")
    for name, dump in dumps.items():
        with clone_of(None) as restored:
            done = subprocess.run(
                [server.bin_dir / "psql", "-Xq", restored.url],
                input=dump,
                capture_output=True,
                text=True,
            )
            complaints = [line for line in done.stderr.splitlines() if "ERROR" in line]
            assert bool(complaints) == (name == "all")
            assert all(re.search(r'role "\w+" does not exist', line) for line in complaints)
            assert check(restored).ok
            assert upgrade(restored).sql_files == ()
            with roles_of(restored, newcomer="reader"), session(restored, "newcomer") as fresh:
                assert fresh.execute("SELECT category FROM defect.categories").fetchone() == (
                    "leather",
                )
