"""Roles from the command line, and the command line under each of them."""

from __future__ import annotations

import getpass
import re
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from pgdefect.cli.main import run
from pgdefect.db.access.logins import add_login, drop_login
from pgdefect.db.access.roles import setup
from pgdefect.db.connection.engine import Database
from pgdefect.db.server.embedded import EmbeddedServer
from tests.synthetic import write_dataset

from .conftest import Cli, contents, value

Clone = Callable[[Database | None], AbstractContextManager[Database]]
VARIABLE = "PGDEFECT_ROLE_PASSWORD"


def as_login(database: Database, name: str) -> Database:
    return Database(database.url.replace("pgdefect@", f"{quote(name, safe='')}@", 1))


@pytest.fixture
def roles(database: Database) -> Iterator[Database]:
    """An empty database whose roles are dropped behind the test."""
    yield database
    drop_roles(database)


def drop_roles(database: Database) -> None:
    name = conninfo_to_dict(database.url)["dbname"]
    with database.autocommit() as connection:
        found = connection.execute(
            "SELECT rolname FROM pg_roles WHERE rolname = ANY (%s)",
            [[f"{name}_writer", f"{name}_reader"]],
        ).fetchall()
        for (role,) in found:
            for statement in ("DROP OWNED BY {}", "DROP ROLE {}"):
                connection.execute(sql.SQL(statement).format(sql.Identifier(role)))


@pytest.fixture(scope="module")
def line(clone_of: Clone, _trained_template: Database) -> Iterator[Database]:
    """A trained database with the logins `station` (writer) and `analyst` (reader)."""
    with clone_of(_trained_template) as database:
        setup(database)
        add_login(database, "station", "writer", None)
        add_login(database, "analyst", "reader", None)
        yield database
        for name in ("station", "analyst"):
            drop_login(database, name)
        drop_roles(database)


def test_a_writer_does_a_line_stations_work(
    line: Database, good: Cli, cli: Cli, tmp_path: Path
) -> None:
    new = write_dataset(
        tmp_path / "new",
        num_train=2,
        num_test_normal=2,
        num_per_defect=1,
        seed=7,
        size=(128, 128),
    )
    station = as_login(line, "station")
    good(station, "ingest", new, "--category", "parts")
    judged = good(station, "inspect", new / "test", "--category", "parts", "--json").json
    assert len(judged["inspections"]) == 5
    assert value(line, "SELECT count(*) FROM defect.inspections WHERE path LIKE %s", f"{new}%") == 5
    good(station, "inspect", new / "test", "--category", "parts")  # a second time
    before = value(line, "SELECT threshold FROM pgdefect.detector")
    good(station, "threshold", "parts", "--set", before * 1.1)
    assert value(line, "SELECT set_by FROM defect.thresholds WHERE in_force") == "station"
    good(station, "retire", "--image", "1")
    good(station, "activate", "--image", "1")
    good(station, "search", new / "test/scratch/000.png", "-k", 3)
    station.dispose()


def test_a_writer_is_told_what_only_the_owner_does(line: Database, cli: Cli) -> None:
    station = as_login(line, "station")
    before = contents(line)
    for words in (
        ["train", "parts"],
        ["delete", "--detector", "1", "--yes"],
        ["delete", "--category", "parts", "--yes"],
    ):
        result = cli(station, *words)
        assert result.code == 1
        assert "only the owner of the schema may: 'pgdefect'" in result.error
    for words in (
        ["delete", "--image", "1", "--yes"],
        ["retire", "--category", "parts"],
        ["retire", "--detector", "1"],
        ["db", "upgrade"],
        ["db", "role", "drop", "analyst"],
    ):
        result = cli(station, *words)
        assert result.code == 1, words
        assert "this login may not d" in result.error
    assert contents(line) == before
    station.dispose()


def test_a_reader_looks_at_everything_and_changes_nothing(
    line: Database, good: Cli, cli: Cli, parts: Path
) -> None:
    analyst = as_login(line, "analyst")
    before = contents(line)
    for words in (
        ["categories"],
        ["detectors"],
        ["threshold", "parts"],
        ["search", "1", "-k", "3"],
        ["search", "--patch", "1:0"],
        ["db", "role", "list"],
        ["db", "check"],
    ):
        assert good(analyst, *words).out
    for words in (
        ["ingest", parts, "--category", "mine"],
        ["inspect", parts / "test", "--category", "parts"],
        ["threshold", "parts", "--set", "0.5"],
        ["train", "parts"],
        ["db", "upgrade"],
        ["db", "role", "setup"],
    ):
        result = cli(analyst, *words)
        assert result.code == 1, words
        assert re.search("read-only|may not do that|only the owner", result.error), words
    assert contents(line) == before
    analyst.dispose()


# -- db role -------------------------------------------------------------------------------


def test_add_list_drop(
    roles: Database, good: Cli, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = good(roles, "db", "role", "add", "o'hara", "--reader", "--generate", "--json").json
    assert len(made["password"]) >= 20
    assert made["made"]
    assert made["for_administrator"] == []
    assert made["url"].startswith("postgresql://o%27hara@")
    monkeypatch.setenv(VARIABLE, "hunter2-xyzzy")
    added = good(roles, "db", "role", "add", "line 1", "--writer", "--connections", 3)
    assert "hunter2" not in added.out + added.err
    listed = {one["name"]: one for one in good(roles, "db", "role", "list", "--json").json}
    assert listed["o'hara"]["kind"] == "reader"
    assert listed["line 1"]["connection_limit"] == 3
    assert "o'hara" in good(roles, "db", "role", "list").out
    for name in ("o'hara", "line 1"):
        assert good(roles, "db", "role", "drop", name).out == f"{name} is dropped\n"
    assert "there is none" in cli(roles, "db", "role", "drop", "line 1").error


def test_password_is_asked_for_twice_on_a_terminal(
    roles: Database, good: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def answer(prompt: str = "", stream: object = None) -> str:
        asked.append(prompt)
        return "typed in"

    monkeypatch.setattr(getpass, "getpass", answer)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    good(roles, "db", "role", "add", "typist", "--reader")
    assert len(asked) == 2
    good(roles, "db", "role", "drop", "typist")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--reader or --writer"),
        (["--reader", "--writer"], "--reader or --writer"),
        (["--reader", "--generate", "--no-password"], "one source"),
        (["--reader"], "PGDEFECT_ROLE_PASSWORD"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_made(
    roles: Database, cli: Cli, words: list[str], said: str
) -> None:
    result = cli(roles, "db", "role", "add", "someone", *words)
    assert result.code == 2
    assert said in result.error
    assert value(roles, "SELECT count(*) FROM pg_roles WHERE rolname = 'someone'") == 0


def test_owner_without_the_rights_is_given_the_script(
    empty_database: Database, cli: Cli, good: Cli
) -> None:
    name = conninfo_to_dict(empty_database.url)["dbname"]
    with empty_database.autocommit() as connection:
        connection.execute(f"CREATE ROLE plain_{name} LOGIN")
        connection.execute(f"ALTER DATABASE {name} OWNER TO plain_{name}")
        connection.execute("CREATE EXTENSION vector")
    plain = as_login(empty_database, f"plain_{name}")
    try:
        good(plain, "db", "upgrade")
        result = cli(plain, "db", "role", "add", "visitor", "--reader", "--generate")
        assert result.code == 1
        assert "then run this again" in result.err
        assert "Have an administrator run them" in result.err
        assert "password" not in result.out
        with empty_database.autocommit() as connection:
            connection.execute(result.out)
        again = cli(plain, "db", "role", "add", "visitor", "--reader", "--no-password")
        assert again.code == 1  # the roles are there now, and the login may still not be made
        with empty_database.autocommit() as connection:
            connection.execute(again.out)
        assert "visitor" in good(plain, "db", "role", "list").out
        assert good(plain, "db", "role", "setup").out == "roles are complete\n"
        refused = cli(plain, "db", "role", "drop", "visitor")
        assert 'DROP ROLE "visitor"' in refused.error
        good(empty_database, "db", "role", "drop", "visitor")
    finally:
        plain.dispose()
        drop_roles(empty_database)
        with empty_database.autocommit() as connection:
            connection.execute(f"REASSIGN OWNED BY plain_{name} TO pgdefect")
            connection.execute(f"DROP OWNED BY plain_{name}")
            connection.execute(f"DROP ROLE plain_{name}")


def test_an_embedded_servers_reader_over_tcp(
    place: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It logs in with its password, and finds every other database closed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data = ("--data-dir", str(place / "data"))
    server = EmbeddedServer(place / "data")
    assert run([*data, "db", "up", "--listen", f"127.0.0.1:{port}"]) == 0
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET log_statement = 'all'")
        connection.execute("SELECT pg_reload_conf()")
    monkeypatch.setenv(VARIABLE, "p@ss/w:rd?#[%] §")
    assert run([*data, "db", "role", "add", "remote", "--reader"]) == 0
    assert f"postgresql://remote@127.0.0.1:{port}/pgdefect" in capfd.readouterr().err
    try:
        address = {"host": "127.0.0.1", "port": port, "user": "remote"}
        secret = "p@ss/w:rd?#[%] §"
        with psycopg.connect(dbname="pgdefect", password=secret, **address) as connection:
            connection.execute("SELECT * FROM defect.categories")
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(dbname="pgdefect", password="wrong", **address)
        with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
            psycopg.connect(dbname="postgres", password=secret, **address)
        log = (place / "data/server.log").read_text(errors="replace")
        assert "SELECT" in log
        assert "SCRAM-SHA-256$" not in log
        assert secret not in log
        # On the private socket the operating system's word is all that counts.
        socket_url = server.url().replace("pgdefect@", "remote@")
        with psycopg.connect(socket_url) as connection:
            connection.execute("SELECT 1")
    finally:
        assert run([*data, "db", "role", "drop", "remote"]) == 0
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute("ALTER SYSTEM RESET log_statement")
        server.stop()
