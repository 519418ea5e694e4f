"""Indexes that an upgrade puts off, or that are missing, are built while others read and write."""

from __future__ import annotations

import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from digests import definitions
from guarded import Clone
from psycopg import sql
from test_concurrency import PROGRAM, WAIT, number, wait_until
from test_dumps import VERSIONS, unpacked

from pgdefect.core.config import Settings
from pgdefect.core.errors import Busy, DatabaseError
from pgdefect.db.backup.client_programs import find_program
from pgdefect.db.connection.engine import Database
from pgdefect.db.schema import indexes
from pgdefect.db.schema.indexes import build_missing, concurrently, missing_indexes, run_beside
from pgdefect.db.schema.partitions import loading
from pgdefect.db.schema.schema import check, newest_revision, require_current, upgrade
from pgdefect.usecases.doctor import examine
from pgdefect.usecases.inspect.inspect import inspect

HNSW = "pgdefect.image_embedding_1_hnsw"
OF_IMAGES = [
    "ix_image_attributes",
    "ix_image_category_id_group_name",
    "ix_image_category_id_known_defect_type",
    "ix_image_created_at",
]
"""Of migration 0004, which also makes each extractor's HNSW index anew."""
Old = Callable[[str], Database]


def run(database: Database, *statements: str) -> None:
    with database.autocommit() as connection:
        for statement in statements:
            connection.execute(sql.SQL(statement))  # type: ignore[arg-type]


def objects(database: Database) -> list[tuple[object, ...]]:
    return [row for row in definitions(database) if row[0] != "sequence"]


def invalid(database: Database) -> int:
    return number(
        database,
        "SELECT count(*) FROM pg_index x JOIN pg_class c ON c.oid = x.indexrelid "
        "WHERE c.relnamespace = 'pgdefect'::regnamespace AND NOT x.indisvalid",
    )


@pytest.fixture
def old(clone_of: Clone, tmp_path: Path) -> Iterator[Old]:
    """Databases of released versions, as Postgres's own program restores their dumps."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def make(version: str) -> Database:
            database = stack.enter_context(clone_of(None))
            run(database, "CREATE EXTENSION vector")
            program = find_program("pg_restore", least=18, bundled_first=True).path
            command = [program, "--exit-on-error", "--no-owner", f"--dbname={database.url}"]
            subprocess.run([*command, unpacked(version, tmp_path)], check=True)
            return database

        yield make


@contextmanager
def an_old_transaction(database: Database, table: str) -> Iterator[psycopg.Connection]:
    """Somebody who writes to a table, and lets a build of its index wait."""
    with psycopg.connect(database.url, application_name="a report") as connection:
        connection.execute(sql.SQL("LOCK TABLE {} IN ROW EXCLUSIVE MODE").format(sql.SQL(table)))  # type: ignore[arg-type]
        yield connection


# -- what an upgrade puts off ----------------------------------------------------------------


@pytest.mark.parametrize("version", [v for v in VERSIONS if v != newest_revision()])
def test_what_is_put_off_is_built_as_the_migrations_would(
    old: Old, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    within, beside = old(version), old(version)
    assert upgrade(within).indexes == ()
    monkeypatch.setattr(indexes, "BIG_TABLE", 1)
    report = upgrade(beside)
    if version < "0004":
        assert {"image_embedding_1_hnsw", *OF_IMAGES} <= set(report.indexes)
    assert len(set(report.indexes)) == len(report.indexes)
    assert check(beside).differences == ()
    assert objects(beside) == objects(within)
    assert upgrade(beside).indexes == ()


def test_others_write_while_indexes_are_built(old: Old, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexes, "BIG_TABLE", 1)
    database = old("0003")
    other = Database(database.url)
    begun = threading.Event()

    def progress(stage: str, done: int, total: int) -> None:
        begun.set()
        assert release.wait(WAIT)

    release = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        upgrading = pool.submit(upgrade, database, progress=progress)
        try:
            wait_until(lambda: begun.is_set() or upgrading.done())
            # The schema is in use already. What writes from here on, builds wait for.
            require_current(other)
            with an_old_transaction(other, "pgdefect.image_embedding_1") as writer:
                release.set()
                wait_until(lambda: invalid(other) > 0)
                with psycopg.connect(other.url) as quick:
                    quick.execute("SET lock_timeout = '1s'")
                    quick.execute("UPDATE pgdefect.image SET attributes = '{\"line\": 3}'")
                    quick.execute("DELETE FROM pgdefect.image_embedding WHERE image_id = 3")
                writer.execute("DELETE FROM pgdefect.image_embedding WHERE image_id = 4")
                assert not upgrading.done()
        finally:
            release.set()
        assert "image_embedding_1_hnsw" in upgrading.result(WAIT).indexes
    assert invalid(other) == 0
    assert number(other, "SELECT count(*) FROM pgdefect.image WHERE attributes ? 'line'") > 15
    other.dispose()


def test_an_upgrade_whose_build_waits_too_long(trained: Database, settings: Settings) -> None:
    """It says who was in the way, and what holds already; the next one builds anew."""
    before = objects(trained)
    run(trained, f"DROP INDEX {HNSW}")
    with an_old_transaction(trained, "pgdefect.image_embedding_1") as connection:
        pid = connection.info.backend_pid
        with pytest.raises(Busy) as refused:
            upgrade(trained, lock_wait=0.5)
        said = str(refused.value)
        assert f"at revision {newest_revision()} and in use, but an index is missing" in said
        assert "building image_embedding_1_hnsw gave up after 0.5 seconds" in said
        assert f"held by server process {pid} (login pgdefect, a report" in said
        assert "pgdefect db upgrade resumes it" in said
        require_current(trained)
        assert len(inspect(trained, settings, "parts", split="test").inspections) == 13
    assert invalid(trained) == 1
    found = [f.subject for f in examine(trained, settings).findings if f.check == "invalid-index"]
    assert found == [HNSW]
    assert upgrade(trained).indexes == ("image_embedding_1_hnsw",)
    assert objects(trained) == before


def test_an_upgrade_that_is_killed_while_it_builds(trained: Database) -> None:
    before = objects(trained)
    run(trained, f"DROP INDEX {HNSW}", "DROP INDEX pgdefect.ix_image_created_at")
    command = [*PROGRAM, "--database-url", trained.url, "db", "upgrade"]
    with (
        an_old_transaction(trained, "pgdefect.image_embedding_1"),
        subprocess.Popen(command, stderr=subprocess.PIPE) as program,
    ):
        wait_until(lambda: invalid(trained) == 1)
        program.send_signal(signal.SIGKILL)
        program.wait()
        # The server notices, and does not build for nobody.
        building = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX CONC%'"
        wait_until(lambda: number(trained, f"{building} AND state = 'active'") == 0)
    assert invalid(trained) == 1
    assert sorted(upgrade(trained).indexes) == ["image_embedding_1_hnsw", "ix_image_created_at"]
    assert objects(trained) == before


# -- what is missing -------------------------------------------------------------------------


def test_every_index_that_is_gone_is_made_again(trained: Database) -> None:
    """HNSW, of models, of partitioned tables with their partitions', and unique ones."""
    before = objects(trained)
    gone = [
        "image_embedding_1_hnsw",
        "memory_bank_patch_1_hnsw",
        "ix_image_attributes",
        "ix_image_embedding_image_id",
        "uq_detector_active",
    ]
    run(trained, *(f"DROP INDEX pgdefect.{name}" for name in gone))
    assert len(check(trained).differences) == 3
    with trained.connect() as connection:
        [of_partitions] = [
            one.statements
            for one in missing_indexes(connection)
            if one.name == "ix_image_embedding_image_id"
        ]
    assert of_partitions == (
        "CREATE INDEX CONCURRENTLY IF NOT EXISTS image_embedding_1_image_id_idx "
        "ON pgdefect.image_embedding_1 (image_id)",
        "CREATE INDEX ix_image_embedding_image_id ON pgdefect.image_embedding (image_id)",
    )
    assert sorted(upgrade(trained).indexes) == sorted(gone)
    assert objects(trained) == before
    assert check(trained).ok


def test_somebodys_own_broken_index_is_left_to_them(trained: Database) -> None:
    with trained.autocommit() as connection, pytest.raises(psycopg.errors.UniqueViolation):
        connection.cursor().execute(
            "CREATE UNIQUE INDEX CONCURRENTLY one_split ON pgdefect.image (split)"
        )
    assert upgrade(trained).indexes == ()
    assert invalid(trained) == 1


def test_a_build_that_fails_is_said(trained: Database) -> None:
    run(
        trained,
        "DROP INDEX pgdefect.uq_detector_active",
        "INSERT INTO pgdefect.detector (category_id, extractor_id, kind, version, state, active, "
        "threshold, threshold_rule, score_center, settings, metrics, library_versions) "
        "SELECT category_id, extractor_id, kind, 9, state, active, threshold, threshold_rule, "
        "score_center, settings, metrics, library_versions FROM pgdefect.detector",
    )
    with pytest.raises(DatabaseError, match=r"UNIQUE INDEX CONCURRENTLY uq_detector_active.*could"):
        upgrade(trained)
    run(trained, "DELETE FROM pgdefect.detector WHERE version = 9")
    assert upgrade(trained).indexes == ("uq_detector_active",)
    assert check(trained).ok


def test_two_do_not_build_the_same(trained: Database) -> None:
    run(trained, f"DROP INDEX {HNSW}")
    other = Database(trained.url)
    with (
        other.lock("building indexes"),
        pytest.raises(Busy, match="building indexes is running since"),
    ):
        upgrade(trained)
    other.dispose()
    assert upgrade(trained).indexes == ("image_embedding_1_hnsw",)


def test_a_load_under_way_builds_its_own_index(trained: Database) -> None:
    run(trained, f"DROP INDEX {HNSW}")
    with trained.lock(loading(1)):
        assert build_missing(trained) == ()
    assert build_missing(trained) == ("image_embedding_1_hnsw",)


# -- a server with little shared memory --------------------------------------------------------

REFUSES_WORKERS = """
CREATE FUNCTION public.refuse() RETURNS event_trigger LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('max_parallel_maintenance_workers') <> '0' THEN
        RAISE EXCEPTION 'could not resize shared memory segment' USING ERRCODE = '53100';
    END IF;
END
$$;
CREATE EVENT TRIGGER refuse ON ddl_command_start WHEN TAG IN ('CREATE INDEX')
EXECUTE FUNCTION public.refuse();
"""


def test_a_build_goes_on_alone_where_workers_have_no_memory(trained: Database) -> None:
    before = objects(trained)
    run(trained, f"DROP INDEX {HNSW}", REFUSES_WORKERS)
    assert upgrade(trained).indexes == ("image_embedding_1_hnsw",)
    with pytest.raises(DatabaseError, match=r"REINDEX .*no_such.*does not exist"):
        run_beside(trained, ["REINDEX INDEX CONCURRENTLY pgdefect.no_such"], "this")
    run(trained, "DROP EVENT TRIGGER refuse", "DROP FUNCTION public.refuse")
    assert objects(trained) == before


def test_concurrently_is_said_once() -> None:
    unique = "CREATE UNIQUE INDEX u ON pgdefect.image (path) WHERE split = 'CREATE INDEX x ON y'"
    assert concurrently(unique) == re.sub("INDEX u", "INDEX CONCURRENTLY u", unique)
    assert concurrently(concurrently(unique)) == concurrently(unique)
