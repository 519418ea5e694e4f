"""Wait for locks for a time, and say who held them when it is over."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from sqlalchemy import exc

from pgdefect.core.errors import Busy, PgdefectError
from pgdefect.db.connection.engine import Database

LOCK_WAIT = 30.0
"""Seconds that a change of the schema waits for each lock that others hold."""
_LOOK_EVERY = 1.0
_BLOCKERS = """
    SELECT a.pid, a.usename, nullif(a.application_name, ''), a.state,
           date_trunc('second', a.xact_start)
    FROM unnest(pg_blocking_pids(%s)) b(pid) JOIN pg_stat_activity a USING (pid)
    ORDER BY a.xact_start"""


@contextmanager
def waiting_for_locks(
    database: Database,
    connection: psycopg.Connection[Any],
    task: str,
    seconds: float,
    done: str = "Nothing was changed",
) -> Iterator[None]:
    """For the block, statements of `connection` wait this long for each lock.

    That is for its transaction, where it has one, and for its session where it commits each. A
    second session looks once a second for the sessions that block them: after the timeout the
    server no longer knows.

    Raises:
        Busy: a lock was held for longer; the message names `task`, the sessions that held it and
            what was `done`.
    """
    local = "" if connection.autocommit else "LOCAL "
    connection.execute(f"SET {local}lock_timeout = {max(1, round(seconds * 1000))}")
    watch = _Watch(database, connection.info.backend_pid, min(_LOOK_EVERY, seconds / 4))
    watch.start()
    try:
        yield
    except (psycopg.Error, exc.DBAPIError, Busy) as error:
        if not isinstance(_cause(error), psycopg.errors.LockNotAvailable):
            raise
        watch.end()
        who = "; ".join(watch.holders) or "a session that has ended since"
        raise Busy(
            f"{task} gave up after {seconds:g} seconds of waiting for a lock, held by {who}. "
            f"{done}. Have that end, or end it with pg_terminate_backend, and run the command "
            "again"
        ) from error
    finally:
        watch.end()


class _Watch(threading.Thread):
    """Remembers who last blocked a server process."""

    def __init__(self, database: Database, pid: int, interval: float) -> None:
        super().__init__(name="pgdefect-locks", daemon=True)
        self.holders: list[str] = []
        self._database, self._pid, self._interval = database, pid, interval
        self._over = threading.Event()

    def run(self) -> None:
        # Most changes are over before it is worth a connection.
        if self._over.wait(self._interval):
            return
        try:
            with self._database.autocommit() as connection:
                while not self._over.is_set():
                    rows = connection.execute(_BLOCKERS, [self._pid]).fetchall()
                    if rows:
                        self.holders = [_described(*row) for row in rows]
                    self._over.wait(self._interval)
        except (psycopg.Error, PgdefectError):
            return  # For example no connection is free: the message then names no session.

    def end(self) -> None:
        self._over.set()
        self.join()


def _described(
    pid: int, login: str | None, program: str | None, state: str | None, since: object
) -> str:
    parts = [part for part in (login and f"login {login}", program, state) if part]
    parts += [f"in a transaction since {since}"] if since else []
    return f"server process {pid} ({', '.join(parts) or 'of another login'})"


def _cause(error: BaseException) -> BaseException | None:
    """The driver's error beneath SQLAlchemy's, or beneath ours."""
    if isinstance(error, Busy):
        error = error.__cause__ or error
    return error.orig if isinstance(error, exc.DBAPIError) else error
