"""Connections: the embedded server or the company's, checked once, errors in our words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import psycopg
from psycopg.adapt import Dumper
from psycopg.pq import Format
from sqlalchemy import Connection, Engine, create_engine, exc

from pgdefect import errors
from pgdefect.config import Settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from sqlalchemy.orm import Session

MIN_POSTGRES = 16
MIN_PGVECTOR = (0, 8, 4)
SECRET = {"password", "sslpassword", "oauth_client_secret", "scram_client_key"}
"""Parameters of a URL that never leave it."""


_PORTS = re.compile(r"[^:,]*(:[0-9]*)?(,[^:,]*(:[0-9]*)?)*|.*\[.*")
"""Hosts and ports of a URL; where there is a bracket, libpq has the word."""


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


class Database:
    """One Postgres database and the settings every connection to it gets.

    `url` is a libpq URI (``postgresql://user@host/name``).
    """

    def __init__(self, url: str) -> None:
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
            pool_size=4,
            max_overflow=8,
        )
        return engine

    def _connect(self) -> psycopg.Connection[Any]:
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
            raise _cannot_connect(error, self.safe_url) from error
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: psycopg.Connection[Any]) -> None:
        row = connection.execute(_ON_CONNECT).fetchone()
        connection.commit()
        assert row is not None
        major, extension, _, oid, array_oid, _ = row
        if major < MIN_POSTGRES:
            raise errors.UnsupportedServer(
                f"the server at {self.safe_url} is PostgreSQL {major}; pgdefect needs "
                f"{MIN_POSTGRES} or newer. Upgrade it, or leave out --database-url to use the "
                "embedded one."
            )
        if extension is not None:
            check_pgvector(extension, self.safe_url)
            dumper = type(
                "VectorArrayDumper", (_VectorArrayDumper,), {"oid": array_oid, "element_oid": oid}
            )
            connection.adapters.register_dumper(VectorArray, dumper)
            dumper = type("VectorDumper", (_VectorDumper,), {"oid": oid})
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
        with translated(self), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """A connection in a transaction, committed when the block ends well."""
        with translated(self), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def session(self) -> Iterator[Session]:
        """An ORM session in a transaction, committed when the block ends well."""
        from sqlalchemy.orm import Session

        with (
            translated(self),
            Session(self.engine, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session

    @contextmanager
    def autocommit(self) -> Iterator[psycopg.Connection[Any]]:
        """A psycopg connection of its own, outside any transaction."""
        with translated(self):
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
            key = "hashtextextended('pgdefect ' || %s, 0)"
            got = connection.execute(f"SELECT pg_try_advisory_lock({key})", [subject]).fetchone()
            if got != (True,):
                holder = connection.execute(
                    f"""SELECT a.pid, date_trunc('second', a.backend_start) FROM pg_locks l
                        JOIN pg_stat_activity a USING (pid)
                        WHERE l.locktype = 'advisory' AND l.granted
                          AND l.database = (SELECT oid FROM pg_database
                                            WHERE datname = current_database())
                          AND (l.classid::bigint << 32) | l.objid::bigint = {key}""",
                    [subject],
                ).fetchone()
                since = f" since {holder[1]} (server process {holder[0]})" if holder else ""
                raise errors.Busy(f"{subject} is under way{since}; wait for it to end")
            try:
                yield
            finally:
                # Closing would free it too, but only when the server gets round to it.
                with suppress(psycopg.Error):
                    connection.execute(f"SELECT pg_advisory_unlock({key})", [subject])

    def dispose(self) -> None:
        self.engine.dispose()


class _VectorArrayDumper(Dumper):
    format = Format.BINARY
    element_oid = 0

    def dump(self, obj: VectorArray) -> bytes:
        from pgdefect.db.copy import vector_array_binary

        return vector_array_binary(obj.values, self.element_oid)


class _VectorDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: Vector) -> bytes:
        from pgdefect.db.copy import vector_binary

        return vector_binary(obj.values)


def _is_secret(parameter: str) -> bool:
    """Also one that is misspelt or has a stray character before it: libpq refuses it later."""
    return any(secret in parameter.lower() for secret in SECRET)


def driver(connection: Connection) -> psycopg.Connection[Any]:
    """The psycopg connection beneath, for COPY and binary parameters."""
    raw = connection.connection.driver_connection
    assert isinstance(raw, psycopg.Connection)
    return raw


def open_database(settings: Settings) -> Database:
    """The database the settings name; starts the embedded server when they name none."""
    if settings.database_url is not None:
        return Database(settings.database_url.get_secret_value())
    from pgdefect.db.embedded import EmbeddedServer

    server = EmbeddedServer(settings.data_dir)
    server.start()
    return Database(server.url())


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


def _cannot_connect(error: psycopg.Error, where: str) -> errors.DatabaseError:
    text = " ".join(str(error).split())
    lowered = text.lower()
    if any(
        phrase in lowered
        for phrase in ("password", "pg_hba.conf", "authentication failed", "role ")
    ):
        return errors.AuthenticationFailed(
            f"{where} refuses this login: {text}. Check user and password in the URL, "
            "PGPASSWORD or ~/.pgpass"
        )
    return errors.DatabaseUnavailable(
        f"no database at {where}: {text}. Check PGDEFECT_DATABASE_URL or --database-url; "
        "without it the embedded server is used"
    )


@contextmanager
def translated(database: Database) -> Iterator[None]:
    """Turn the driver's errors into ours, once, keeping the cause."""
    try:
        yield
    except (psycopg.Error, exc.DBAPIError) as error:
        original = error.orig if isinstance(error, exc.DBAPIError) else error
        translation = _translate(original, database.safe_url)
        if translation is None:
            raise
        raise translation from error


def _translate(error: BaseException | None, where: str) -> errors.PgdefectError | None:
    if not isinstance(error, psycopg.Error):
        return None
    state = error.sqlstate or ""
    diagnostics = error.diag
    message = diagnostics.message_primary or " ".join(str(error).split())
    full = f"{message}. {diagnostics.message_hint}" if diagnostics.message_hint else message
    match state:
        case "PD400":
            return errors.UsageError(full)
        case "PD404":
            return errors.NotFound(full)
        case "PD409":
            return errors.Conflict(full)
        case "53100":
            return errors.DatabaseFull(
                f"the server at {where} has no space left: {message}. Nothing was stored; "
                "free some space and run the command again"
            )
        case "53200" if "max_locks_per_transaction" in (diagnostics.message_hint or ""):
            return errors.DatabaseFull(
                f"the server at {where} has no room for as many locks at once as this takes, some "
                "for each memory bank. Nothing was stored; set max_locks_per_transaction higher "
                "there, restart it, and run the command again"
            )
        case "53200":
            return errors.DatabaseFull(
                f"the server at {where} ran out of memory: {message}. Nothing was stored; "
                "lower maintenance_work_mem or free memory, and run the command again"
            )
        case "55P03":
            return errors.Busy(f"another session holds a lock this needs: {message}. Try again")
        case "57014":
            return errors.DatabaseError(f"the server cancelled the statement: {message}")
        case "42P01" | "3F000" | "42883" | "42703":
            return errors.SchemaOutOfDate(
                f"the database at {where} does not have pgdefect's present schema ({message}). "
                "Run: pgdefect db upgrade"
            )
        case "23503":
            return errors.Conflict(
                f"another session deleted what this refers to, or refers to what this deletes: "
                f"{message}. Run the command again"
            )
        case "42501":
            return errors.PermissionDenied(
                f"this login may not do that: {full}. What each role may do is in docs/roles.md; "
                "pgdefect db role list shows who has which"
            )
        case "25006":
            return errors.PermissionDenied(
                f"this session only reads: {message}. So are a reader's set by default; log in as "
                "a writer or the owner"
            )
    if state.startswith("22"):
        return errors.InputError(f"the database does not take a value that it was given: {full}")
    operational = isinstance(error, psycopg.OperationalError)
    if state.startswith(("08", "57P")) or (operational and not state):
        return errors.DatabaseUnavailable(
            f"lost the connection to {where}: {message}. Nothing half-done was stored; "
            "run the command again"
        )
    if operational:
        return errors.DatabaseError(f"the server at {where} could not do that: {full}")
    return None
