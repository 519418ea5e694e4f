"""A server of its own, and a place for commands to run in: lanes do not disturb each other.

A command runs as a process of its own, forked from one that has imported the libraries already,
so that every kill comes while there is something to lose. For the rest it is the command line as
users run it.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from pgdefect.core.config import Settings
from pgdefect.core.progress import Progress
from pgdefect.db.connection.engine import Database
from pgdefect.db.search.recall import check_recall
from pgdefect.db.server.embedded import EmbeddedServer
from pgdefect.usecases.doctor import examine
from soak.state import State, amcheck, database_state, files_in

LIMIT_S = 600
"""A command that takes longer hangs."""
LIGHT = (
    "pgdefect.cli.main",
    "pgdefect.usecases.inspect.inspect",
    "pgdefect.usecases.exchange.export",
)
HEAVY = (
    "pgdefect.usecases.train.train",
    "anomalib.data",
    "anomalib.engine",
    "anomalib.models",
    "openvino",
)
USER_CONF = """
# Processes are killed here, not machines: what was written is there, synced or not.
fsync = off
shared_buffers = 128MB
autovacuum_naptime = 1s
"""
PASSING = ("disk", "memory", "shared-memory", "old-statistics", "dead-rows")
"""Findings of doctor on the machine, and those that autovacuum takes away when it gets round to
it: not on what a run left."""
RECALL_SAMPLE, LEAST_RECALL = 50, 0.95
"""An index that lost some of its entries finds fewer; one that is whole may, by its graph and the
sample, stay a little under the target of `pgdefect recall-check`."""
UNDOCUMENTED = "Run with --verbose to see where"

_LOCK = threading.Lock()
"""Beginning a process asks after all others, and only one may be told of an end."""

Forker = Any


def forker(*, heavy: bool) -> Forker:
    """Forks commands from a process that has imported what they need; heavy: for training too."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*LIGHT, *(HEAVY if heavy else ())])
    return context


Stage = tuple[str, int]
"""A stage of a command's progress, and how much of it is done."""


def _command(
    arguments: list[str], environment: dict[str, str], output: str, dies_at: Stage | None
) -> None:
    """Be the command line, with its output in a file."""
    os.environ.update(environment)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, null), (1, file), (2, file)):
        os.dup2(source, target)
    from pgdefect.cli.main import main

    if dies_at is not None:
        _die_at(*dies_at)
    main(arguments)


def _die_at(stage: str, least: int) -> None:
    """Have SIGKILL end this process when its progress has come so far."""
    from pgdefect.cli import catalog, exchange, inspection, training

    def progress(name: str, done: int, total: int) -> None:
        if name == stage and done >= least:
            os.kill(os.getpid(), signal.SIGKILL)

    @contextmanager
    def bars(quiet: bool = False) -> Iterator[Progress]:
        yield progress

    for module in (catalog, exchange, inspection, training):
        vars(module)["progress_bars"] = bars


class Command:
    """A command line under way; output is what it printed, both streams."""

    def __init__(
        self,
        forked_by: Forker,
        arguments: Sequence[str],
        environment: dict[str, str],
        output: Path,
        dies_at: Stage | None = None,
    ) -> None:
        self._output = output
        self._offset = output.stat().st_size if output.exists() else 0
        self.started = time.monotonic()
        self.process: Any = forked_by.Process(
            target=_command,
            args=(list(arguments), environment, str(output), dies_at),
            daemon=True,
        )
        with _LOCK:
            self.process.start()
        self.seconds = 0.0

    def ended_within(self, seconds: float) -> bool:
        """Wait for its end, at most so long."""
        wait([self.process.sentinel], max(0.0, seconds))
        with _LOCK:
            return self.process.exitcode is not None

    def kill(self) -> None:
        """SIGKILL, unless it has ended."""
        with _LOCK:
            self.process.kill()

    def wait(self) -> int:
        """The exit code; negative is a signal's number. Raises TimeoutError where it hangs."""
        if not self.ended_within(LIMIT_S):
            self.kill()
            raise TimeoutError(f"hung for {LIMIT_S} s: {self.output[-1000:]}")
        self.seconds = self.seconds or time.monotonic() - self.started
        code: int = self.process.exitcode
        return code

    @property
    def output(self) -> str:
        with suppress(FileNotFoundError):
            return self._output.read_bytes()[self._offset :].decode(errors="replace")
        return ""


@dataclass
class Place:
    """Where one job's commands work: a database, and folders for cache, scratch and output."""

    database: Database
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PGDEFECT_CACHE_DIR": str(self.folder / "cache"),
            "PGDEFECT_DATA_DIR": str(self.folder / "data"),
            "TMPDIR": str(self.folder / "tmp"),
            "HF_HUB_OFFLINE": "1",
        }

    @property
    def name(self) -> str:
        """The database's."""
        return str(psycopg.conninfo.conninfo_to_dict(self.database.url)["dbname"])

    @property
    def settings(self) -> Settings:
        return Settings(cache_dir=self.folder / "cache", data_dir=self.folder / "data")


class Lane:
    """An embedded server in a folder, and databases cloned from templates in it."""

    def __init__(self, folder: Path, forked_by: Forker) -> None:
        self.folder = folder
        self.server = EmbeddedServer(folder / "data")
        self._forked_by = forked_by
        self._number = count(1)

    # -- the server -----------------------------------------------------------------------

    def start(self) -> None:
        """Make sure that the server runs, with our settings."""
        if self.server.start().change == "created":
            with (self.folder / "data" / "postgres" / "user.conf").open("a") as file:
                file.write(USER_CONF)
            self.server.stop()
            self.server.start()
        deadline = time.monotonic() + LIMIT_S
        while True:
            try:
                with self.admin():
                    return
            except psycopg.OperationalError:
                # One that recovers from a crash of its own calls itself ready.
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.02)

    @staticmethod
    def wait_for_crash(connection: psycopg.Connection[Any]) -> None:
        """Wait until a server with a killed process has noticed, and ended this connection: for
        some hundredths of a second it lets others in.
        """
        deadline = time.monotonic() + LIMIT_S
        with suppress(psycopg.OperationalError):
            while time.monotonic() < deadline:
                connection.execute("SELECT 1")
                time.sleep(0.005)
            raise TimeoutError("the server did not notice that a process of it was killed")
        connection.close()

    def copy_to(self, folder: Path) -> Lane:
        """Another lane with the same databases; this one's server is stopped for it."""
        self.server.stop()
        (folder / "data").mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)
        subprocess.run(["cp", "-a", f"{self.folder}/data/.", folder / "data"], check=True)
        shutil.rmtree(folder / "data" / "run", ignore_errors=True)
        return Lane(folder, self._forked_by)

    @contextmanager
    def admin(self, name: str = "postgres") -> Iterator[psycopg.Connection[Any]]:
        with psycopg.connect(self.url(name), autocommit=True) as connection:
            yield connection

    def url(self, name: str) -> str:
        return self.server.url().replace("/pgdefect?", f"/{name}?")

    def template(self, name: str, origin: str) -> Database:
        """A database that others are cloned from, made from another."""
        with self.admin() as connection:
            connection.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
                    sql.Identifier(name), sql.Identifier(origin)
                )
            )
            # Without it a crash soon after takes a copied sequence back behind numbers that were
            # given out: its first ones are not logged again.
            connection.execute("CHECKPOINT")
        return Database(self.url(name))

    @contextmanager
    def place(self, template: str) -> Iterator[Place]:
        """A clone of a template and folders of its own, for a block."""
        name = f"job_{next(self._number)}"
        folder = self.folder / name
        for part in ("tmp", "out", "data"):
            (folder / part).mkdir(parents=True)
        place = Place(self.template(name, template), folder)
        try:
            yield place
        finally:
            place.database.dispose()
            shutil.rmtree(folder, ignore_errors=True)
            self.start()
            with self.admin() as connection:
                connection.execute(sql.SQL("DROP DATABASE {} (FORCE)").format(sql.Identifier(name)))

    # -- commands -------------------------------------------------------------------------

    def begin(
        self, place: Place, arguments: Sequence[str], dies_at: Stage | None = None
    ) -> Command:
        """Start a command line against a place's database; dies_at: for a kill at a place in it."""
        url = place.database.url
        return Command(
            self._forked_by,
            ["--database-url", url, *arguments],
            place.environment,
            place.folder / "output.log",
            dies_at,
        )

    def run(self, place: Place, arguments: Sequence[str]) -> Command:
        """Run a command line that must succeed. Raises RuntimeError where it does not."""
        command = self.begin(place, arguments)
        if code := command.wait():
            raise RuntimeError(f"{' '.join(arguments)}: exit code {code}\n{command.output}")
        return command

    def settle(self, place: Place) -> None:
        """Wait until the server is up and nobody but us is in the place's database."""
        self.start()
        with self.admin() as connection:
            self.until(
                lambda: connection.execute(
                    "SELECT count(*) = 0 FROM pg_stat_activity "
                    "WHERE datname = %s AND backend_type = 'client backend'",
                    [place.name],
                ),
                "sessions of a command that is gone are still there",
            )

    @staticmethod
    def until(ask: Callable[[], psycopg.Cursor[Any]], complaint: str) -> None:
        deadline = time.monotonic() + LIMIT_S
        while ask().fetchone() != (True,):
            if time.monotonic() > deadline:
                raise TimeoutError(complaint)
            time.sleep(0.01)

    def state(self, place: Place) -> State:
        """What the place holds when nobody is at work there, with what doctor, the recall check
        and pg_amcheck say.
        """
        self.settle(place)
        remarks: Counter[str] = Counter()
        found = examine(place.database, place.settings, thorough=True, files=True)
        remarks.update(
            f"doctor: {finding.severity} {finding.check}"
            for finding in found.findings
            if finding.check not in PASSING
        )
        remarks.update(
            f"recall of {index.searched} below {LEAST_RECALL}"
            for index in check_recall(place.database, sample=RECALL_SAMPLE)
            if index.recall < LEAST_RECALL
        )
        place.database.dispose()
        program = self.server.bin_dir / "pg_amcheck"
        remarks.update(amcheck(program, place.database.url))
        rows, relations = database_state(place.database.url)
        return State(rows, relations, files_of(place), remarks)


def files_of(place: Place) -> dict[str, str]:
    """The files in a place's folders, with checksums."""
    return {
        f"{part}/{name}": digest
        for part in ("cache", "tmp", "out", "data")
        for name, digest in files_in(place.folder / part).items()
    }
