"""Restore a backup in one transaction, so that no other session ever sees a part of it.

Rows first, indexes last, then migrations up to the code's revision. Whatever ends it early, a
failure, Ctrl-C, SIGKILL or a power cut, leaves the database as it was, and the same command can
be run again. In a new table of the transaction's own rows need no write-ahead log where the
server keeps none for replicas (``wal_level = minimal``, as the embedded one).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, NamedTuple

import psycopg
from sqlalchemy import Connection, exc, text

from pgdefect.core.errors import BackupError, Conflict
from pgdefect.core.progress import Progress
from pgdefect.core.wording import option
from pgdefect.db.access.audit import newest_entry, record
from pgdefect.db.backup.pg_dump_archive import Archive, Statement, open_archive
from pgdefect.db.connection.engine import Database, driver
from pgdefect.db.connection.lock_wait import LOCK_WAIT
from pgdefect.db.schema.hnsw import build_index, give_memory
from pgdefect.db.schema.schema import (
    begin_exclusive,
    bring_up,
    ensure_pgvector,
    is_known,
    newest_revision,
    vector_schema,
)

BUILT = ("INDEX", "CONSTRAINT")
"""Kinds of entries of an archive for which an index is built: keys are constraints."""
BLOCK_BYTES = 1 << 20
CLIENT_CHECK_MS = 2_000
"""A killed restoration is rolled back no later than this, however long its statement takes."""
_COPY = re.compile(rb"^COPY (\S+) \(.*\) FROM stdin;\n$")
_HNSW = re.compile(r"^CREATE INDEX \S+ ON (?!ONLY )(\S+) USING hnsw ", re.MULTILINE)
# What pg_dump says before its SQL, for this transaction alone.
_SETTINGS = {
    "search_path": "",
    "check_function_bodies": "off",
    "row_security": "off",
    "client_min_messages": "warning",
    "xmloption": "content",
    "default_tablespace": "",
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
}


@dataclass(frozen=True)
class RestoreReport:
    """What :func:`restore` did: rows by table, partitions under their own names.

    Attributes:
        revision_before: that of the backup.
        replaced: whether other rows had to go.
    """

    path: Path
    revision_before: str
    revision: str
    replaced: bool
    num_indexes: int
    num_rows: dict[str, int]


def restore(
    database: Database,
    path: Path,
    *,
    replace: bool = False,
    bundled_first: bool = False,
    lock_wait: float = LOCK_WAIT,
    progress: Progress = lambda stage, done, total: None,
) -> RestoreReport:
    """Put a backup's rows where nothing of pgdefect's is, or with `replace` instead of it.

    A schema without rows counts as nothing. What is replaced is there again, untouched, where
    the restoration does not come to its end; until then others wait for it. The roles' grants
    are granted again, where the database has them.

    Raises:
        BackupError: the file is no backup, is damaged, or is of a newer revision than the code.
        Conflict: there are rows and not `replace`; objects of somebody else's stand on them; or
            pgvector's types are in another schema here.
        Busy: somebody else holds a lock that this needs; the message says who.
        UnsupportedServer: the server has no pgvector, or too old a one.
    """
    archive = open_archive(path, bundled_first=bundled_first)
    if not is_known(archive.revision):
        raise BackupError(
            f"{archive.path} is of schema revision {archive.revision}, and this pgdefect knows "
            f"them up to {newest_revision()}. Install the pgdefect that wrote it, or a newer one"
        )
    indexes = archive.post_data()
    with begin_exclusive(database, "the restoration", lock_wait) as connection:
        _notice_when_killed(connection)
        trail = newest_entry(connection)
        replaced = _make_room(connection, database, replace)
        ensure_pgvector(connection, database, schema=archive.vector_schema)
        _require_schema(connection, archive)
        with _settings(connection), _reported(archive):
            driver(connection).execute(archive.pre_data.encode())
            num_rows = _load(connection, archive, progress)
            _finish(connection, indexes, num_rows, progress)
        report = bring_up(connection)
        after = {"backup": archive.path.name, "revision": archive.revision}
        record(connection, "restore", "database", trail and {"trail": trail}, after)
    database.dispose()
    count = archive.count(*BUILT)
    return RestoreReport(archive.path, archive.revision, report.revision, replaced, count, num_rows)


# -- what is there -------------------------------------------------------------------------


def _make_room(connection: Connection, database: Database, replace: bool) -> bool:
    """Drop both schemas if that is allowed; whether rows went with them."""
    state = _state(connection)
    if state == "rows" and not replace:
        raise Conflict(
            f"the database at {database.safe_url} has rows of pgdefect's already. Restore into "
            f"another database; or put the backup in their place with {option('replace')} (if that "
            "fails they "
            "are kept; if not they are gone, so take a backup of them first)"
        )
    if state != "nothing":
        before = _others(connection)
        connection.execute(text("DROP SCHEMA IF EXISTS defect, pgdefect CASCADE"))
        gone = [before[key] for key in sorted(before.keys() - _others(connection).keys())]
        if gone:
            raise Conflict(
                f"other objects stand on pgdefect's and would go with them: {', '.join(gone[:5])}"
                f"{' and more' if len(gone) > 5 else ''}. Drop those, restore, and make them "
                "again; nothing was changed"
            )
    return state == "rows"


def _state(connection: Connection) -> Literal["nothing", "schema", "rows"]:
    tables = connection.scalars(
        text(
            "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c "
            "JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE n.nspname IN ('pgdefect', 'defect') AND c.relkind IN ('r', 'p') "
            "AND NOT c.relispartition "
            "AND c.relname NOT IN ('alembic_version', 'sql_file', 'audit', 'audit_head')"
        )
    ).all()
    if any(connection.scalar(text(f"SELECT EXISTS (SELECT FROM {name})")) for name in tables):
        return "rows"
    exist = "SELECT coalesce(to_regnamespace('pgdefect'), to_regnamespace('defect')) IS NOT NULL"
    return "schema" if connection.scalar(text(exist)) else "nothing"


def _others(connection: Connection) -> dict[tuple[int, int], str]:
    """Tables, views, functions and constraints outside our schemas, each with a description."""
    rows = connection.execute(
        text("""
        SELECT classid::bigint, o.oid::bigint, pg_describe_object(classid, o.oid, 0)
        FROM (
            SELECT 'pg_class'::regclass AS classid, oid, relnamespace AS schema FROM pg_class
            UNION ALL
            SELECT 'pg_proc'::regclass, oid, pronamespace FROM pg_proc
            UNION ALL
            SELECT 'pg_constraint'::regclass, oid, connamespace FROM pg_constraint
        ) o
        JOIN pg_namespace n ON n.oid = o.schema
        WHERE n.nspname NOT IN ('pgdefect', 'defect', 'pg_catalog', 'information_schema')
          AND n.nspname !~ '^pg_(toast|temp)'""")
    )
    return {(classid, oid): description for classid, oid, description in rows}


def _require_schema(connection: Connection, archive: Archive) -> None:
    here = vector_schema(connection)
    if here != archive.vector_schema:
        raise Conflict(
            f"in {archive.path} the types of pgvector are in the schema {archive.vector_schema}, "
            f"and here in {here}. Move them, and back again afterwards if need be: "
            f"ALTER EXTENSION vector SET SCHEMA {archive.vector_schema}"
        )


@contextmanager
def _settings(connection: Connection) -> Iterator[None]:
    """pg_dump's own, for the block."""
    before = {}
    for name, value in _SETTINGS.items():
        before[name] = connection.scalar(text("SELECT current_setting(:n)"), {"n": name})
        _set(connection, name, value)
    yield
    for name, value in before.items():
        _set(connection, name, value)


def _notice_when_killed(connection: Connection) -> None:
    """Have the server look now and then, in long statements, whether this process is alive."""
    with suppress(exc.DBAPIError), connection.begin_nested():  # not on every system
        _set(connection, "client_connection_check_interval", str(CLIENT_CHECK_MS))


def _set(connection: Connection, name: str, value: str | None) -> None:
    connection.execute(text("SELECT set_config(:n, :v, true)"), {"n": name, "v": value})


@contextmanager
def _reported(archive: Archive) -> Iterator[None]:
    """Say of statements that fail that they came from the file, where nothing else is at fault."""
    try:
        yield
    except (psycopg.OperationalError, psycopg.errors.InsufficientPrivilege):
        raise
    except psycopg.Error as error:
        raise BackupError(
            f"{archive.path} cannot be restored here: {' '.join(str(error).split())}. Nothing was "
            "changed"
        ) from error


# -- rows ----------------------------------------------------------------------------------


def _load(connection: Connection, archive: Archive, progress: Progress) -> dict[str, int]:
    """Run the section of data; rows by table."""
    raw = driver(connection)
    total = archive.count("TABLE DATA")
    num_rows: dict[str, int] = {}
    progress("restore", 0, total)
    with archive.data() as stream:
        for part in _parts(stream):
            if part.copy is None:
                raw.execute(part.sql)
                continue
            with raw.cursor() as cursor:
                with cursor.copy(part.copy) as copy:
                    for block in _rows(archive, stream):
                        copy.write(block)
                name = part.sql.decode().replace('"', "").removeprefix("pgdefect.")
                num_rows[name] = max(0, cursor.rowcount)
            progress("restore", len(num_rows), total)
    return num_rows


class _Part(NamedTuple):
    """SQL to run; or a COPY statement, whose rows follow in the stream, and its table."""

    sql: bytes
    copy: bytes | None = None


def _parts(stream: IO[bytes]) -> Iterator[_Part]:
    lines: list[bytes] = []
    for line in stream:
        found = _COPY.match(line)
        if found is None:
            # The head is for psql's session; what it sets is set already.
            if not line.startswith((b"SET ", b"SELECT pg_catalog.set_config(", b"\\")):
                lines.append(line)
            continue
        if any(_says_something(line) for line in lines):
            yield _Part(b"".join(lines))
        lines = []
        yield _Part(found[1], line)
    if any(_says_something(line) for line in lines):
        yield _Part(b"".join(lines))


def _says_something(line: bytes) -> bool:
    return bool(line.strip()) and not line.startswith(b"--")


def _rows(archive: Archive, stream: IO[bytes]) -> Iterator[bytes]:
    """Blocks of the rows that follow, up to the line that ends them."""
    block: list[bytes] = []
    size = 0
    for line in stream:
        if line == b"\\.\n":
            yield b"".join(block)
            return
        block.append(line)
        size += len(line)
        if size >= BLOCK_BYTES:
            yield b"".join(block)
            block, size = [], 0
    raise BackupError(f"{archive.path} is damaged: a table's rows break off. Nothing was changed")


# -- indexes -------------------------------------------------------------------------------


def _finish(
    connection: Connection,
    statements: list[Statement],
    num_rows: dict[str, int],
    progress: Progress,
) -> None:
    """Indexes, constraints and triggers, then statistics for the planner."""
    give_memory(driver(connection))
    total = sum(statement.kind in BUILT for statement in statements)
    done = 0
    progress("indexes", 0, total)
    for statement in statements:
        hnsw = _HNSW.search(statement.sql)
        if hnsw:
            name = hnsw[1].replace('"', "").removeprefix("pgdefect.")
            build_index(connection, hnsw[1], statement.sql, num_rows.get(name, 0))
        else:
            driver(connection).execute(statement.sql.encode())
        if statement.kind in BUILT:
            done += 1
            progress("indexes", done, total)
    tables = connection.scalars(
        text(
            "SELECT format('pgdefect.%I', relname) FROM pg_class WHERE relkind = 'r' "
            "AND relnamespace = 'pgdefect'::regnamespace"
        )
    ).all()
    for table in tables:
        connection.execute(text(f"ANALYZE {table}"))
