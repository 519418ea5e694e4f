"""Which process serves a cluster, by its postmaster.pid and by what the process is.

A pid alone proves nothing: after a crash, or in a restarted container, another program
may have it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Postmaster:
    """The content of a postmaster.pid; ``state`` is ``ready`` once connections are accepted."""

    pid: int
    directory: Path
    started: int
    port: int
    socket_dir: str
    listen_host: str
    state: str


def read_pid_file(pgdata: Path) -> Postmaster | None:
    """What the server wrote down of itself; ``None`` without a file or with half of one."""
    try:
        lines = (pgdata / "postmaster.pid").read_text().splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return None
    lines += [""] * (8 - len(lines))
    try:
        pid, started, port = int(lines[0]), int(lines[2]), int(lines[3] or 0)
    except ValueError:
        return None
    if pid <= 0:  # a single-user backend, which Postgres guards against itself
        return None
    return Postmaster(pid, Path(lines[1]), started, port, lines[4], lines[5], lines[7].strip())


def running_postmaster(pgdata: Path) -> Postmaster | None:
    """The server that has these files open, wherever it thinks they are."""
    postmaster = read_pid_file(pgdata)
    return postmaster if postmaster and runs_in(postmaster.pid, pgdata) else None


def moved_from(pgdata: Path) -> Path | None:
    """The place where a living server believes these files are, if it is another one."""
    postmaster = read_pid_file(pgdata)
    if postmaster is None or os.path.realpath(postmaster.directory) == os.path.realpath(pgdata):
        return None
    alive = runs_in(postmaster.pid, pgdata) or runs_in(postmaster.pid, postmaster.directory)
    return postmaster.directory if alive else None


def runs_in(pid: int, pgdata: Path) -> bool:
    """Whether the process is a Postgres whose cluster is ``pgdata``: it works in there."""
    import psutil  # type: ignore[import-untyped, unused-ignore]

    try:
        process = psutil.Process(pid)
        if process.name() != "postgres" or process.status() == psutil.STATUS_ZOMBIE:
            return False
        try:
            return os.path.samefile(process.cwd(), pgdata)
        except psutil.AccessDenied:
            # Some systems hide this even from the process's own user.
            return bool(process.uids().real == pgdata.stat().st_uid)
    except (psutil.Error, FileNotFoundError):
        return False


def processes_in(pgdata: Path) -> list[int]:
    """The pids of all Postgres processes of this cluster, the server's and its backends'."""
    import psutil  # type: ignore[import-untyped, unused-ignore]

    return [pid for pid in psutil.pids() if runs_in(pid, pgdata)]


def remove_stale_files(pgdata: Path, socket_dir: Path) -> None:
    """Remove lock files whose pid some other program has now; no server may be running.

    Postgres takes any living process of its own user for a server, and in a restarted
    container small pids come back at once. With pids of the dead it deals itself, so a
    postmaster.pid that has one stays: it leads to what a killed server left in memory.
    """
    for leftover in socket_dir.glob(".s.PGSQL.*"):
        leftover.unlink(missing_ok=True)
    postmaster = read_pid_file(pgdata)
    if postmaster is None:
        return
    try:
        os.kill(postmaster.pid, 0)
    except ProcessLookupError:
        return
    except PermissionError:
        pass
    (pgdata / "postmaster.pid").unlink(missing_ok=True)
