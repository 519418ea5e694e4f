"""Connections are few and shared; work that the server undoes for others' sake is done again."""

from __future__ import annotations

import gc
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from guarded import as_login, database_name
from psycopg import sql
from sqlalchemy import Connection, text

from pgdefect.cli.main import run
from pgdefect.core.config import MAX_CONNECTIONS, Settings, load_settings
from pgdefect.core.errors import (
    Busy,
    Conflict,
    NoConnectionFree,
    ServerStarting,
    TransactionRolledBack,
    UsageError,
)
from pgdefect.db.connection import engine
from pgdefect.db.connection.engine import ATTEMPTS, Database, open_database
from pgdefect.db.records.catalog import ensure_category
from pgdefect.db.records.lifecycle import delete_category
from pgdefect.db.records.reviews import review_image
from pgdefect.db.server.embedded import EmbeddedServer
from pgdefect.usecases.evaluate.evaluate import evaluate
from pgdefect.usecases.ingest import ingest
from pgdefect.usecases.inspect.embed import embed
from pgdefect.usecases.inspect.inspect import inspect
from pgdefect.usecases.search.search import Query, SearchOptions, search
from pgdefect.usecases.threshold import change_threshold
from pgdefect.usecases.train.options import TrainOptions
from pgdefect.usecases.train.train import train
from tests.places import short_folder

WAIT = 120.0
"""Seconds after which a test gives up; nothing here is expected to take long."""


@contextmanager
def limited(database: Database, connections: int, patience: float) -> Iterator[Database]:
    """The same database for another process, as it were."""
    opened = Database(database.url, connections, patience)
    yield opened
    opened.dispose()


def backends(database: Database) -> int:
    """Sessions in this database, without the one that asks."""
    with psycopg.connect(database.url) as connection:
        row = connection.execute(
            "SELECT count(*) - 1 FROM pg_stat_activity "
            "WHERE datname = current_database() AND backend_type = 'client backend'"
        ).fetchone()
    assert row is not None
    return int(row[0])


# -- the pool ------------------------------------------------------------------------------


def test_whoever_finds_no_connection_free_is_told_in_the_end(database: Database) -> None:
    with limited(database, 2, 0.05) as few:
        with few.connect() as one, few.session() as other:
            assert one.scalar(text("SELECT 1")) == other.scalar(text("SELECT 1")) == 1
            with pytest.raises(NoConnectionFree) as refused, few.begin():
                pass
            assert backends(database) == 2
        message = str(refused.value)
        assert "all 2 connections that this process may have" in message
        assert "in use for 0.05 seconds" in message
        assert "PGDEFECT_MAX_CONNECTIONS" in message
        assert refused.value.__cause__ is not None
        with few.begin() as again:
            assert again.scalar(text("SELECT 1")) == 1


def test_sessions_make_way_for_new_ones(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def session_of(opened: Database) -> int:
        with opened.connect() as connection:
            return int(connection.scalar(text("SELECT pg_backend_pid()")))

    with limited(database, 1, 1.0) as lasting:
        assert len({session_of(lasting) for _ in range(3)}) == 1
    monkeypatch.setattr(engine, "SESSION_LIFE", 0.05)
    with limited(database, 1, 1.0) as renewed:
        first = session_of(renewed)
        time.sleep(0.1)
        assert session_of(renewed) != first
        assert backends(database) == 1


def test_a_new_connection_leaves_no_class_behind(database: Database) -> None:
    """The driver keeps every class that it was given: connections made anew would add up."""

    def classes() -> int:
        gc.collect()
        return len(
            engine._VectorArrayDumper.__subclasses__() + engine._VectorDumper.__subclasses__()
        )

    with database.autocommit():
        before = classes()
    for _ in range(5):
        with database.autocommit():
            pass
    assert before > 0
    assert classes() == before


def test_a_server_that_stays_in_recovery_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(*_: object, **__: object) -> None:
        asked.append(1)
        raise psycopg.OperationalError("FATAL:  the database system is in recovery mode")

    monkeypatch.setattr(psycopg, "connect", refuse)
    monkeypatch.setattr(engine, "RECOVERY", 0.25)
    with pytest.raises(ServerStarting, match=r"not accepting connections yet: .*recovery mode"):
        Database("postgresql://somebody@somewhere/parts").connect().__enter__()
    assert len(asked) > 2


def test_many_threads_share_few_connections(database: Database) -> None:
    used = set()

    def work(number: int) -> None:
        with few.begin() as connection:
            ensure_category(connection, f"category {number}")
            used.add(connection.scalar(text("SELECT pg_backend_pid()")))

    with limited(database, 3, WAIT) as few:
        with ThreadPoolExecutor(20) as pool:
            list(pool.map(work, range(200)))
        assert backends(database) == len(used) <= 3
        with few.connect() as connection:
            assert connection.scalar(text("SELECT count(*) FROM pgdefect.category")) == 200


def test_the_limit_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "postgresql://nobody@/nothing"
    assert open_database(load_settings(database_url=url)).max_connections == MAX_CONNECTIONS
    monkeypatch.setenv("PGDEFECT_MAX_CONNECTIONS", "3")
    assert open_database(load_settings(database_url=url)).max_connections == 3
    monkeypatch.setenv("PGDEFECT_MAX_CONNECTIONS", "0")
    with pytest.raises(UsageError, match=r"PGDEFECT_MAX_CONNECTIONS: .*\(got '0'\)"):
        load_settings()


def test_nobody_who_has_a_connection_waits_for_another(
    trained: Database, settings: Settings, parts: Path, tmp_path: Path
) -> None:
    """One is enough for all there is to do: else, with many threads, all might wait for ever."""
    images = sorted((parts / "test" / "scratch").glob("*.png"))
    new = tmp_path / "new"
    shutil.copytree(parts, new)
    with limited(trained, 1, WAIT) as one:
        assert ingest(one, new, "more").added == 29
        (new / "test/good/000.png").unlink()
        assert ingest(one, new, "more", accept_changes=True).vanished == ("test/good/000.png",)
        train(one, settings, "more", TrainOptions(image_size=(128, 128)))
        found = inspect(one, settings, "more", [new], keep_patches=True)
        assert len(found.inspections) == 28
        assert all(inspection.defect for inspection in found.inspections if inspection.is_anomalous)
        assert embed(one, settings, "more", again=True).defect_embeddings > 0
        query = Query(like=[str(images[0])])
        assert search(one, settings, query, SearchOptions(), category="parts").neighbors
        assert evaluate(one, settings, "more").figures["image_auroc"]
        change_threshold(one, "more", "given", 0.5)
        review_image(one, str(new / "test/scratch/001.png"), "anomalous")
        delete_category(one, "more")
        assert backends(trained) == 1


# -- servers without a connection to spare -------------------------------------------------


def test_login_or_database_without_a_connection_to_spare(database: Database) -> None:
    name = sql.Identifier(database_name(database))
    with database.autocommit() as connection:
        connection.execute("CREATE ROLE station LOGIN CONNECTION LIMIT 1")
        try:
            station = as_login(database, "station")
            with psycopg.connect(station.url):
                assert_no_slot(station, "too many connections for role")
            connection.execute("ALTER ROLE station CONNECTION LIMIT -1")
            connection.execute(sql.SQL("ALTER DATABASE {} CONNECTION LIMIT 0").format(name))
            assert_no_slot(station, "too many connections for database")
            connection.execute(sql.SQL("ALTER DATABASE {} CONNECTION LIMIT -1").format(name))
            assert_no_slot(station, None)
            station.dispose()
        finally:
            connection.execute("DROP ROLE station")


def assert_no_slot(database: Database, words: str | None) -> None:
    for block in (database.connect, database.begin, database.autocommit):
        if words is None:
            with block():
                continue
        with pytest.raises(NoConnectionFree, match=words) as refused, block():
            pass
        assert "max_connections" in str(refused.value)
        assert "PGDEFECT_MAX_CONNECTIONS" in str(refused.value)


def test_server_with_all_connections_taken(capfd: pytest.CaptureFixture[str]) -> None:
    with short_folder() as folder:
        server = EmbeddedServer(folder / "data")
        server.start()
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET max_connections = 4")
        server.stop()
        server.start()
        holders = [psycopg.connect(server.url()) for _ in range(4)]
        try:
            assert_no_slot(Database(server.url()), "sorry, too many clients already")
            assert run(["--database-url", server.url(), "categories"]) == 1
            said = capfd.readouterr().err
            assert "has no connection free" in said
            assert "Traceback" not in said
        finally:
            for holder in holders:
                holder.close()


# -- work that is undone -------------------------------------------------------------------


def add_two(database: Database) -> None:
    with database.begin() as connection:
        connection.execute(text("INSERT INTO pgdefect.category (name) VALUES ('a'), ('b')"))


def crosswise(transaction: Callable[[Callable[[Connection], None]], None]) -> list[int]:
    """Two threads lock two rows, one the other way round; how often each began, and who failed."""
    both_have_one = threading.Barrier(2)

    def work(first: str, second: str) -> int:
        attempts = 0

        def lock(connection: Connection) -> None:
            nonlocal attempts
            attempts += 1
            for name in (first, second):
                connection.execute(
                    text("UPDATE pgdefect.category SET retired_at = now() WHERE name = :name"),
                    {"name": name},
                )
                if attempts == 1 and name == first:
                    both_have_one.wait(WAIT)

        try:
            transaction(lock)
        except TransactionRolledBack:
            return -attempts
        return attempts

    with ThreadPoolExecutor(2) as pool:
        return sorted(pool.map(work, "ab", "ba"))


def test_deadlock_is_a_documented_error(database: Database) -> None:
    add_two(database)

    def plain(work: Callable[[Connection], None]) -> None:
        with database.begin() as connection:
            work(connection)

    assert crosswise(plain) == [-1, 1]


def test_transaction_in_a_deadlock_is_done_again(database: Database) -> None:
    add_two(database)
    assert crosswise(database.transact) == [1, 2]


def test_transaction_whose_snapshot_is_overtaken_is_done_again(database: Database) -> None:
    add_two(database)
    seen = []

    def work(connection: Connection) -> str:
        connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
        seen.append(connection.scalar(text("SELECT name FROM pgdefect.category WHERE id = 1")))
        if len(seen) == 1:
            with psycopg.connect(database.url) as other:
                other.execute("UPDATE pgdefect.category SET name = 'c' WHERE id = 1")
        connection.execute(text("UPDATE pgdefect.category SET name = name || '!' WHERE id = 1"))
        return "done"

    assert database.transact(work) == "done"
    assert seen == ["a", "c"]
    with database.connect() as connection:
        assert connection.scalar(text("SELECT name FROM pgdefect.category WHERE id = 1")) == "c!"


@pytest.mark.parametrize(
    ("state", "error", "attempts"),
    [
        ("40P01", TransactionRolledBack, ATTEMPTS),
        ("40001", TransactionRolledBack, ATTEMPTS),
        ("55P03", Busy, 1),
        ("PD409", Conflict, 1),
    ],
)
def test_attempts_come_to_an_end(
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    state: str,
    error: type[Exception],
    attempts: int,
) -> None:
    monkeypatch.setattr(engine, "PAUSE", 0.0)
    tried = []

    def work(connection: Connection) -> None:
        tried.append(ensure_category(connection, "a"))
        connection.exec_driver_sql(f"DO $$ BEGIN RAISE 'no' USING ERRCODE = '{state}'; END $$")

    with pytest.raises(error) as caught:
        database.transact(work)
    assert len(tried) == attempts
    if error is TransactionRolledBack:
        assert "Nothing was stored; run the command again" in str(caught.value)
    with database.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM pgdefect.category")) == 0


def test_pauses_are_random_and_grow(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        asked.append((low, high))
        return 0.0

    monkeypatch.setattr(random, "uniform", uniform)

    def work(connection: Connection) -> None:
        connection.exec_driver_sql("DO $$ BEGIN RAISE 'no' USING ERRCODE = '40P01'; END $$")

    with pytest.raises(TransactionRolledBack):
        database.transact(work)
    assert [low for low, _ in asked] == [0.0] * (ATTEMPTS - 1)
    assert [high for _, high in asked] == [engine.PAUSE * 2**n for n in range(ATTEMPTS - 1)]


def test_a_server_of_another_isolation_level_changes_nothing(
    database: Database, parts: Path
) -> None:
    name = sql.Identifier(database_name(database))
    with database.autocommit() as connection:
        connection.execute(
            sql.SQL("ALTER DATABASE {} SET default_transaction_isolation = 'serializable'").format(
                name
            )
        )
    database.dispose()
    with psycopg.connect(database.url) as connection:
        assert connection.execute("SHOW transaction_isolation").fetchone() == ("serializable",)
    with database.connect() as connection:
        assert connection.scalar(text("SHOW transaction_isolation")) == "read committed"
    with ThreadPoolExecutor(4) as pool:
        reports = list(pool.map(lambda _: ingest(database, parts, "parts"), range(4)))
    assert sum(report.added for report in reports) == 29
