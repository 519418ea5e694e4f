"""How these tests call the command line: in this process, against a test database."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from pgdefect.cli.main import run
from pgdefect.db.connection.engine import Database
from pgdefect.db.server.embedded import EmbeddedServer
from tests.places import short_folder


@dataclass(frozen=True)
class Result:
    """What a command line gave back."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """stdout, which must be one JSON document and nothing else."""
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one line on stderr. Fails where there are more, a traceback for one."""
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("pgdefect: "), self.err
        return lines[0]


Cli = Callable[..., Result]
PROGRAM = str(Path(sys.executable).with_name("pgdefect"))
TINY = ("--image-size", "128")


def named(result: list[dict[str, Any]], key: str, wanted: object) -> dict[str, Any]:
    [found] = [row for row in result if row[key] == wanted]
    return found


def contents(database: Database) -> dict[str, int]:
    """Every table of the schema with its number of rows: what a failure must not change."""
    with psycopg.connect(database.url) as connection:
        tables = connection.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'pgdefect'::regnamespace "
            "AND relkind IN ('r', 'p') ORDER BY relname"
        ).fetchall()
        found = {}
        for (name,) in tables:
            query = sql.SQL("SELECT count(*) FROM pgdefect.{}").format(sql.Identifier(name))
            row = connection.execute(query).fetchone()
            assert row is not None
            found[name] = row[0]
    return found


def value(database: Database, query: str, *parameters: object) -> Any:
    """The first column of the first row."""
    with psycopg.connect(database.url) as connection:
        row = connection.execute(query, parameters).fetchone()
    return None if row is None else row[0]


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Cli:
    """Run a command line against a database, in this process."""

    def call(database: Database | None, *arguments: object) -> Result:
        capfd.readouterr()
        url = [] if database is None else ["--database-url", database.url]
        code = run([*url, *map(str, arguments)])
        captured = capfd.readouterr()
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture
def good(cli: Cli) -> Cli:
    """Run a command line that must succeed."""

    def call(database: Database | None, *arguments: object) -> Result:
        result = cli(database, *arguments)
        assert result.code == 0, result.err
        return result

    return call


class Program(subprocess.Popen[str]):
    """A process with pipes, killed when the block that started it ends."""

    def __init__(self, arguments: list[str]) -> None:
        super().__init__(
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=dict(os.environ),
        )

    def __exit__(self, *error: object) -> None:
        self.kill()
        self.communicate()

    def go_on(self) -> None:
        """Send the empty line that the process waits for."""
        assert self.stdin is not None
        print(file=self.stdin, flush=True)

    def line(self) -> str:
        """The next line of stdout; what went to stderr where there is none."""
        assert self.stdout is not None
        return self.stdout.readline() or self.communicate(timeout=30)[1]


def start(database: Database, *arguments: object) -> Program:
    """The command line as a process of its own."""
    return Program([PROGRAM, "--database-url", database.url, *map(str, arguments)])


@pytest.fixture
def own_files(trained: Database, parts: Path, tmp_path: Path) -> Path:
    """A copy of the images that a test may spoil."""
    folder = tmp_path / "own"
    shutil.copytree(parts, folder)
    with psycopg.connect(trained.url) as connection:
        connection.execute("UPDATE pgdefect.image_root SET path = %s", [str(folder)])
    return folder


@pytest.fixture(scope="session")
def place() -> Iterator[Path]:
    """A short directory that Postgres' own user can enter, for a server of one's own."""
    with short_folder() as folder:
        yield folder


def bundled_path() -> str:
    """PATH with this environment's programs and, behind the system's, the bundled psql."""
    bundled = EmbeddedServer(Path("/nonexistent")).bin_dir
    return os.pathsep.join([str(Path(PROGRAM).parent), os.environ["PATH"], str(bundled)])
