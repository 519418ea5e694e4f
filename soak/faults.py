"""What is done to a command, its connection, its server and its server's machine."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg

from pgdefect.db.server.embedded import EmbeddedServer
from soak.lane import Command, Lane, Place, Stage

MIB = 1 << 20
SESSIONS = "datname = %s AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
STAY_S = 0.002


@dataclass(frozen=True)
class Moment:
    """When and how hard: drawn before the command begins.

    rng: decides everything; seconds: what the command takes undisturbed; growth: bytes that the
    server's disk needs more for it.
    """

    rng: random.Random
    seconds: float
    growth: int = 0

    def during(self) -> float:
        return self.rng.uniform(0.0, self.seconds)


Begin = Callable[[Stage | None], Command]
Inject = Callable[[Lane, Place, Begin, Moment], tuple[Command, bool]]
"""Begins the command, does something to it, waits for its end; whether it was hit."""


def kill(lane: Lane, place: Place, begin: Begin, moment: Moment) -> tuple[Command, bool]:
    """SIGKILL to the command line's process."""
    at = moment.during()
    command = begin(None)
    if not command.ended_within(at):
        command.kill()
    return command, command.wait() == -signal.SIGKILL


def kill_at(stage: str, done: int) -> Inject:
    """SIGKILL to the command line's process at one place of its work: no chance in it."""

    def inject(lane: Lane, place: Place, begin: Begin, moment: Moment) -> tuple[Command, bool]:
        command = begin((stage, done))
        return command, command.wait() == -signal.SIGKILL

    return inject


def kill_server(lane: Lane, place: Place, begin: Begin, moment: Moment) -> tuple[Command, bool]:
    """SIGKILL to the postmaster, or to one of its processes, after which it recovers."""
    at, whole = moment.during(), moment.rng.random() < 0.5
    with psycopg.connect(place.database.url, autocommit=True) as connection:
        command = begin(None)
        if command.ended_within(at):
            command.wait()
            return command, False
        # The command's own session, where it has one at that moment.
        pids = connection.execute(
            "SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
            "AND backend_type IN ('client backend', 'checkpointer', 'walwriter') "
            "ORDER BY datname IS NOT DISTINCT FROM %s DESC, pid",
            [place.name],
        ).fetchall()
        pid = lane.server.status().pid if whole else pids[0][0]
        assert pid is not None
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        lane.wait_for_crash(connection)
    command.wait()
    return command, True


def cut(lane: Lane, place: Place, begin: Begin, moment: Moment) -> tuple[Command, bool]:
    """Every connection to the database is ended by the server."""
    at, ended = moment.during(), 0
    with lane.admin() as connection:
        command = begin(None)
        command.ended_within(at)
        # From then on the first moment when there is a connection.
        while not ended and not command.ended_within(STAY_S):
            [(ended,)] = connection.execute(
                f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE {SESSIONS}",
                [place.name],
            ).fetchall()
    command.wait()
    return command, ended > 0


def statement_timeout(
    lane: Lane, place: Place, begin: Begin, moment: Moment
) -> tuple[Command, bool]:
    """Statements may take some milliseconds and no longer."""
    # From where the shortest statements fail to where the longest only just do.
    milliseconds = round(10 ** moment.rng.uniform(0.0, 2.3))
    with lane.admin() as connection:
        connection.execute(f"ALTER DATABASE {place.name} SET statement_timeout = {milliseconds}")
        command = begin(None)
        code = command.wait()
        connection.execute(f"ALTER DATABASE {place.name} RESET statement_timeout")
    return command, code != 0


def memory(lane: Lane, place: Place, begin: Begin, moment: Moment) -> tuple[Command, bool]:
    """A server process gets little more memory than it has when it begins to load a bank: enough
    for its rows, too little for its index, which is first tried by several processes.
    """
    more = moment.rng.randrange(1 * MIB, 5 * MIB)
    limited: set[int] = set()
    with lane.admin() as connection:
        command = begin(None)
        while not command.ended_within(STAY_S):
            rows = connection.execute(
                f"SELECT pid FROM pg_stat_activity WHERE {SESSIONS} "
                "AND query LIKE '%%memory\\_bank\\_patch\\_%%'",
                [place.name],
            ).fetchall()
            for (pid,) in rows:
                if pid not in limited:
                    limited.add(pid)
                    _limit_memory(pid, more)
        code = command.wait()
    return command, bool(limited) and code != 0


def _limit_memory(pid: int, more: int) -> None:
    """As the process's own user: root in a container may not."""
    with suppress(FileNotFoundError, ProcessLookupError):
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + more
        owner = os.stat(f"/proc/{pid}")
        subprocess.run(
            ["prlimit", f"--pid={pid}", f"--as={limit}"],
            user=owner.st_uid if os.geteuid() == 0 else None,
            group=owner.st_gid if os.geteuid() == 0 else None,
            extra_groups=[] if os.geteuid() == 0 else None,
            capture_output=True,
        )


def disk_full(lane: Lane, place: Place, begin: Begin, moment: Moment) -> tuple[Command, bool]:
    """The server's disk has room for a part of what the command writes, and no more."""
    room = moment.rng.randrange(max(1, moment.growth))
    with lane.admin() as connection:
        connection.execute("CHECKPOINT")
    ballast = lane.folder / "data" / "ballast"
    with ballast.open("wb") as file:
        free = os.statvfs(lane.folder / "data")
        os.posix_fallocate(file.fileno(), 0, max(1, free.f_bavail * free.f_frsize - room))
    try:
        command = begin(None)
        code = command.wait()
    finally:
        ballast.unlink()
    return command, code != 0


def free_bytes(server: EmbeddedServer) -> int:
    """What the disk of a server's data has left."""
    found = os.statvfs(server.data_dir)
    return found.f_bavail * found.f_frsize


@dataclass(frozen=True)
class Fault:
    """A kind of fault: what it is called, how it is done, how often to which case by default."""

    name: str
    title: str
    inject: Inject
    times: dict[str, int]
    small_disk: bool = False

    @property
    def total(self) -> int:
        return sum(self.times.values())


FAULTS = (
    Fault(
        "kill",
        "SIGKILL to the command",
        kill,
        {"ingest": 75, "first training": 4, "training": 28, "export": 60, "inspect": 35},
    ),
    Fault(
        "server",
        "SIGKILL to Postgres",
        kill_server,
        {"ingest": 18, "first training": 1, "training": 10, "export": 13, "inspect": 10},
    ),
    Fault("cut", "connections cut", cut, {"ingest": 4, "training": 4, "export": 4, "inspect": 4}),
    Fault(
        "disk",
        "disk full",
        disk_full,
        {"ingest": 4, "training": 4, "inspect": 3},
        small_disk=True,
    ),
    Fault(
        "timeout",
        "statement timeout",
        statement_timeout,
        {"ingest": 4, "training": 4, "export": 3, "inspect": 2},
    ),
    Fault("memory", "out of memory", memory, {"large bank": 5}),
)
