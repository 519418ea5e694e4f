"""Connections to the embedded server or another one: checked once, driver errors mapped."""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote

import psycopg
from psycopg.adapt import Dumper
from psycopg.pq import Format
from sqlalchemy import Connection, Engine, create_engine

from pgdefect.core import errors
from pgdefect.core.config import MAX_CONNECTIONS, Settings
from pgdefect.core.wording import option
from pgdefect.db.connection.error_mapping import cannot_connect, translated

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from sqlalchemy.orm import Session

Result = TypeVar("Result")
MIN_POSTGRES = 16
MIN_PGVECTOR = (0, 8, 4)
PATIENCE = 30.0
"""Seconds that a thread waits for one of the process's connections to be free."""
SESSION_LIFE = 120.0
"""Seconds after which a pooled session is replaced. A session never frees its caches of tables and
statements, and in a process that inspects for weeks that adds up.
"""
RECOVERY = 10.0
"""Seconds to wait for a server that is starting, or recovering after one of its processes died (out
of memory, for example). Must be shorter than `PATIENCE`, so that the caller sees "server is
starting" and not "no free connection"."""
ATTEMPTS = 5
"""Attempts at a transaction that the server rolls back for a deadlock or serialization conflict."""
PAUSE = 0.1
"""Upper bound of the random back-off before the second attempt, in seconds; doubled each time, so
that two deadlocked transactions do not collide again."""
SECRET = {"password", "sslpassword", "oauth_client_secret", "scram_client_key"}
"""Parameters of a URL that never leave it."""


_POOL_LOGGER = "sqlalchemy.pool.impl.QueuePool.pgdefect"
_PORTS = re.compile(r"[^:,]*(:[0-9]*)?(,[^:,]*(:[0-9]*)?)*|.*\[.*")
"""Hosts and ports of a URL; with a bracket, libpq decides."""


class VectorArray:
    """A float32 `(n, dim)` matrix to be sent as ``vector[]`` in the binary protocol."""

    def __init__(self, values: NDArray[np.float32]) -> None:
        self.values = values


class Vector:
    """A float32 `(dim,)` array to be sent as ``vector`` in the binary protocol."""

    def __init__(self, values: NDArray[np.float32]) -> None:
        self.values = values


_ON_CONNECT = """
SELECT current_setting('server_version_num')::integer / 10000, e.extversion, n.nspname,
       t.oid, t.typarray,
       set_config('search_path', concat_ws(', ', 'public', quote_ident(n.nspname)), false)
FROM (VALUES (1)) one
LEFT JOIN pg_extension e ON e.extname = 'vector'
LEFT JOIN pg_namespace n ON n.oid = e.extnamespace
LEFT JOIN pg_type t ON t.typnamespace = n.oid AND t.typname = 'vector'
"""

# A second lock's number holds the time since when the first is held: the locks of another login's
# session are visible, its start time is not.
_KEY = "hashtextextended('pgdefect ' || %(subject)s, 0)"
_SINCE = "hashtext('pgdefect since ' || %(subject)s)"
_TAKE_LOCK = f"""
SELECT CASE WHEN pg_try_advisory_lock({_KEY}) THEN pg_try_advisory_lock(
    {_SINCE}, floor(extract(epoch FROM clock_timestamp()))::bigint::bit(32)::integer) END"""
_LOCK_HOLDER = f"""
SELECT l.pid, to_timestamp(s.objid::bigint), a.usename
FROM pg_locks l JOIN pg_locks s USING (locktype, database, pid, granted)
JOIN pg_stat_activity a USING (pid)
WHERE l.locktype = 'advisory' AND l.granted
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND l.objsubid = 1 AND (l.classid::bigint << 32) | l.objid::bigint = {_KEY}
  AND s.objsubid = 2 AND s.classid::bigint::bit(32)::integer = {_SINCE}"""


class Database:
    """One Postgres database and the settings every connection to it gets.

    `url` is a libpq URI (``postgresql://user@host/name``). Of connections there are never more
    than `max_connections` at once: a thread that finds none free waits for `patience` seconds,
    then NoConnectionFree is raised. Not counted are those of `autocommit` and `lock`, one each.
    Never take a second pooled connection while holding one: that would deadlock the pool. A server
    that is starting or recovering is waited for.
    """

    def __init__(
        self, url: str, max_connections: int = MAX_CONNECTIONS, patience: float = PATIENCE
    ) -> None:
        self.max_connections, self.patience = max_connections, patience
        for scheme in ("postgresql://", "postgres://", "postgresql+psycopg://"):
            if url.startswith(scheme):
                self.url = "postgresql://" + url.removeprefix(scheme)
                break
        else:
            raise errors.UsageError(
                "the database URL must start with postgresql://; "
                "for example postgresql://user@host:5432/name"
            )
        address = self._login_and_address()[1]
        if "@" in address.partition("?")[0] or not _PORTS.fullmatch(
            re.split("[/?]", address, maxsplit=1)[0]
        ):
            raise errors.UsageError(
                "the database URL has an @ or / too many, or a port that is no number: in a user's "
                "name and a password write @ as %40 and / as %2F"
            )

    @cached_property
    def engine(self) -> Engine:
        # psycopg parses the URI itself, so every libpq option in it holds (TLS, service, …).
        engine = create_engine(
            "postgresql+psycopg://",
            creator=self._connect,
            pool_size=self.max_connections,
            max_overflow=0,
            pool_timeout=self.patience,
            pool_use_lifo=True,
            pool_recycle=SESSION_LIFE,
            pool_logging_name=_POOL_LOGGER.rpartition(".")[2],
        )
        # It logs an error that is raised as well, with a traceback on stderr: of a connection that
        # was lost, it cannot roll back.
        logging.getLogger(_POOL_LOGGER).setLevel(logging.CRITICAL)
        return engine

    def _translated(self) -> AbstractContextManager[None]:
        return translated(self.safe_url, self.max_connections, self.patience)

    def _connect(self) -> psycopg.Connection[Any]:
        deadline = time.monotonic() + RECOVERY
        while True:
            try:
                return self._connect_now()
            except errors.ServerStarting:
                if time.monotonic() > deadline:
                    raise
            time.sleep(PAUSE)

    def _connect_now(self) -> psycopg.Connection[Any]:
        try:
            connection = psycopg.connect(self.url, application_name="pgdefect", connect_timeout=10)
        except psycopg.ProgrammingError:
            # Its text repeats the part that libpq cannot read, which may be the password.
            raise errors.UsageError(
                f"the database URL cannot be read (without password: {self.safe_url}); write "
                "characters other than letters and digits percent-encoded, and parameters as "
                "?name=value&name=value"
            ) from None
        except psycopg.Error as error:
            raise cannot_connect(error, self.safe_url) from error
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: psycopg.Connection[Any]) -> None:
        # What the statements are written for, whatever default_transaction_isolation says: under
        # a snapshot a row that somebody else has just added would be in the way, and not seen.
        connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        row = connection.execute(_ON_CONNECT).fetchone()
        connection.commit()
        assert row is not None
        major, extension, _, oid, array_oid, _ = row
        if major < MIN_POSTGRES:
            raise errors.UnsupportedServer(
                f"the server at {self.safe_url} is PostgreSQL {major}; pgdefect needs "
                f"{MIN_POSTGRES} or newer. Upgrade it, or leave out {option('database_url')} to "
                "use the "
                "embedded one"
            )
        if extension is not None:
            check_pgvector(extension, self.safe_url)
            array_dumper, dumper = _dumpers(array_oid, oid)
            connection.adapters.register_dumper(VectorArray, array_dumper)
            connection.adapters.register_dumper(Vector, dumper)

    @property
    def safe_url(self) -> str:
        """The URL without its password, fit to be shown and to be connected with."""
        login, address = self._login_and_address()
        user = login.partition(":")[0]
        address, _, query = address.partition("?")
        # Without an equals sign it is no parameter, but may be the rest of a password.
        items = [item for item in query.split("&") if "=" in item]
        kept = "&".join(i for i in items if not _is_secret(unquote(i.partition("=")[0])))
        return f"postgresql://{user}{'@' if login else ''}{address}{'?' if kept else ''}{kept}"

    def _login_and_address(self) -> tuple[str, str]:
        """The URL's ``user:password`` and what follows, cut where libpq cuts."""
        rest = self.url.removeprefix("postgresql://")
        login, at, address = rest.partition("@")
        return (login, address) if at and "/" not in login else ("", rest)

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        """A connection whose work is rolled back unless committed."""
        with self._translated(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """A connection in a transaction, committed when the block ends well."""
        with self._translated(), self.engine.begin() as connection:
            yield connection

    def transact(self, work: Callable[[Connection], Result]) -> Result:
        """Run a whole transaction; retry it after a deadlock or serialization conflict.

        work gets the connection of `begin`; any other side effect of it must be safe to repeat.

        Raises:
            TransactionRolledBack: after `ATTEMPTS` attempts.
        """

        def once() -> Result:
            with self.begin() as connection:
                return work(connection)

        return retry(once)

    @contextmanager
    def session(self) -> Iterator[Session]:
        """An ORM session in a transaction, committed when the block ends well."""
        from sqlalchemy.orm import Session

        with (
            self._translated(),
            Session(self.engine, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session

    @contextmanager
    def autocommit(self) -> Iterator[psycopg.Connection[Any]]:
        """A psycopg connection of its own, outside any transaction."""
        with self._translated():
            connection = self._connect()
            try:
                connection.autocommit = True
                yield connection
            finally:
                connection.close()

    @contextmanager
    def lock(self, subject: str) -> Iterator[None]:
        """Hold a named advisory lock for the block; it is gone with the process.

        Raises:
            Busy: somebody else holds it; the message says who and since when.
        """
        with self.autocommit() as connection:
            connection.execute("SELECT set_config('application_name', %s, false)", [subject[:63]])
            # A company's server may end sessions that do nothing, and this one only waits.
            connection.execute("SET idle_session_timeout = 0")
            row = connection.execute(_TAKE_LOCK, {"subject": subject}).fetchone()
            if row is None or not row[0]:
                holder = connection.execute(_LOCK_HOLDER, {"subject": subject}).fetchone()
                since = (
                    f" since {holder[1]} (login {holder[2]}, server process {holder[0]})"
                    if holder
                    else ""
                )
                raise errors.Busy(f"{subject} is running{since}; wait for it to end")
            try:
                yield
            finally:
                # Closing would release it too, but only when the server notices.
                with suppress(psycopg.Error):
                    connection.execute("SELECT pg_advisory_unlock_all()")

    def dispose(self) -> None:
        self.engine.dispose()


def retry(work: Callable[[], Result]) -> Result:
    """What `work` returns, which is a transaction; see `Database.transact`."""
    for attempt in range(ATTEMPTS - 1):
        try:
            return work()
        except errors.TransactionRolledBack:
            time.sleep(random.uniform(0, PAUSE * 2**attempt))
    return work()


class _VectorArrayDumper(Dumper):
    format = Format.BINARY
    element_oid = 0

    def dump(self, obj: VectorArray) -> bytes:
        from pgdefect.db.connection.binary_format import vector_array_binary

        return vector_array_binary(obj.values, self.element_oid)


class _VectorDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: Vector) -> bytes:
        from pgdefect.db.connection.binary_format import vector_binary

        return vector_binary(obj.values)


@cache
def _dumpers(array_oid: int, oid: int) -> tuple[type[Dumper], type[Dumper]]:
    """Of ``vector[]`` and ``vector``, which have other numbers in each database.

    Made once: the driver keeps every class that it was ever given.
    """
    return (
        type("VectorArrayDumper", (_VectorArrayDumper,), {"oid": array_oid, "element_oid": oid}),
        type("VectorDumper", (_VectorDumper,), {"oid": oid}),
    )


def _is_secret(parameter: str) -> bool:
    """Also one that is misspelt or has a stray character before it: libpq refuses it later."""
    return any(secret in parameter.lower() for secret in SECRET)


def is_locked(connection: Connection, subject: str) -> bool:
    """Whether somebody holds the lock of that name; see `Database.lock`."""
    return driver(connection).execute(_LOCK_HOLDER, {"subject": subject}).fetchone() is not None


def driver(connection: Connection) -> psycopg.Connection[Any]:
    """The psycopg connection beneath, for COPY and binary parameters."""
    raw = connection.connection.driver_connection
    assert isinstance(raw, psycopg.Connection)
    return raw


def open_database(settings: Settings) -> Database:
    """The database the settings name; starts the embedded server when they name none."""
    if settings.database_url is not None:
        return Database(settings.database_url.get_secret_value(), settings.max_connections)
    from pgdefect.db.server.embedded import EmbeddedServer

    server = EmbeddedServer(settings.data_dir)
    server.start()
    return Database(server.url(), settings.max_connections)


def check_pgvector(version: str, where: str) -> None:
    """Raises :class:`UnsupportedServer` for a pgvector that is too old."""
    parts = tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
    if parts < MIN_PGVECTOR:
        needed = ".".join(map(str, MIN_PGVECTOR))
        raise errors.UnsupportedServer(
            f"{where} has pgvector {version}; pgdefect needs {needed} or newer, because older "
            "ones can corrupt an index on vacuum. Install it on the server, then run "
            "ALTER EXTENSION vector UPDATE"
        )
