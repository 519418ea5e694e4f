"""Indexes of tables with rows are built beside their users, after an upgrade's transaction.

A migration that makes an index of a large table would keep others from writing for as long as
the build takes. So `put_off` leaves such statements out of the transaction, and `build_missing`
makes afterwards, CONCURRENTLY, what the models declare and searches need and is not there.
It looks at what is missing, not at what was put off: a build that was interrupted, or an index
that somebody dropped, is made up for by the next upgrade as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import psycopg
from sqlalchemy import Connection, Index, event, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex

from pgdefect.core.errors import DatabaseError
from pgdefect.core.progress import Progress
from pgdefect.db.connection.engine import Database, driver
from pgdefect.db.connection.lock_wait import LOCK_WAIT, waiting_for_locks
from pgdefect.db.schema.hnsw import give_memory
from pgdefect.db.schema.models import Base
from pgdefect.db.schema.partitions import unindexed

BIG_TABLE = 1 << 20
"""Bytes from which on an index is put off: an HNSW index of 3,400 vectors of 152 halves, a second
of building."""
CLIENT_CHECK = "2s"
_CREATE = re.compile(r"^CREATE (UNIQUE )?INDEX (\S+) ON (\S+)")
_BUILT_BESIDE = re.compile(r"CREATE (?:UNIQUE )?INDEX CONCURRENTLY (?:IF NOT EXISTS )?(\S+)")
_SIZE = """
    SELECT coalesce((SELECT sum(pg_table_size(relid)) FROM pg_partition_tree(to_regclass(%(t)s))),
                    pg_table_size(to_regclass(%(t)s)))"""
_DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]


class InvalidIndex(NamedTuple):
    """What an interrupted build left; the name is quoted, and stands in schema pgdefect.

    Attributes:
        is_copy: made by a rebuild, beside the index that it was to replace.
        rebuild: the statement that fixes it; None for a partitioned table's, which has none of its
            own.
    """

    name: str
    table: str
    method: str
    is_copy: bool
    unique: bool
    rebuild: str | None


class MissingIndex(NamedTuple):
    """An index that should be there, and the statements that make it beside its users."""

    name: str
    statements: tuple[str, ...]


def concurrently(statement: str) -> str:
    """CREATE INDEX, so that others can keep writing."""
    return _CREATE.sub(r"CREATE \1INDEX CONCURRENTLY \2 ON \3", statement, count=1)


def run_beside(
    database: Database, statements: Sequence[str], task: str, lock_wait: float = LOCK_WAIT
) -> None:
    """Run statements that repair or build, each outside a transaction and with a build's memory.

    Raises:
        Busy: others held a lock, or an older transaction was open, for longer than `lock_wait`
            seconds; the message names `task` and them.
        DatabaseError: a statement failed; the message names it.
    """
    with database.autocommit() as connection:
        give_memory(connection)
        with suppress(psycopg.Error):  # not on every system
            # If this process is killed, it leaves no orphaned build behind.
            connection.execute(f"SET client_connection_check_interval = '{CLIENT_CHECK}'")
        for statement in statements:
            with waiting_for_locks(
                database, connection, task, lock_wait, "What was done before that stays"
            ):
                try:
                    _run(connection, statement)
                except psycopg.Error as error:
                    if connection.closed or isinstance(error, psycopg.errors.LockNotAvailable):
                        raise
                    said = error.diag.message_primary or str(error)
                    raise DatabaseError(f"{statement}: {said}") from error


def _run(connection: psycopg.Connection[Any], statement: str) -> None:
    try:
        connection.execute(statement.encode())
    except (psycopg.errors.DiskFull, psycopg.errors.OutOfMemory):
        # Workers share memory, and a container may have too little of it.
        found = _BUILT_BESIDE.match(statement)
        if not found:
            raise
        connection.execute("SET max_parallel_maintenance_workers = 0")
        connection.execute(f"DROP INDEX CONCURRENTLY IF EXISTS pgdefect.{found[1]}".encode())
        connection.execute(statement.encode())


@contextmanager
def put_off(connection: Connection) -> Iterator[None]:
    """For the block, indexes of tables of `BIG_TABLE` or more are not made.

    Unique ones are: they say what may be stored. `build_missing` makes the others.
    """

    def leave_out(
        here: Connection, cursor: Any, statement: str, parameters: Any, context: Any, many: bool
    ) -> tuple[str, Any]:
        found = _CREATE.match(statement.lstrip())
        if found and not found[1]:
            row = driver(here).execute(_SIZE, {"t": found[3]}).fetchone()
            if row and (row[0] or 0) >= BIG_TABLE:
                return "DO 'BEGIN END'", parameters
        return statement, parameters

    event.listen(connection, "before_cursor_execute", leave_out, retval=True)
    try:
        yield
    finally:
        event.remove(connection, "before_cursor_execute", leave_out)


def build_missing(
    database: Database,
    *,
    lock_wait: float = LOCK_WAIT,
    progress: Progress = lambda stage, done, total: None,
) -> tuple[str, ...]:
    """Make what `missing_indexes` finds, beside readers and writers; the names of what it made.

    Raises:
        Busy: somebody else is building them, or holds a lock or an old transaction.
        DatabaseError: a build failed. It may have left an invalid index, which the next call,
            or a doctor that fixes, builds again.
    """
    with database.connect() as connection:
        if not missing_indexes(connection):
            return ()
    built: list[str] = []
    # Others do not wait for this lock: an open transaction that waits is one that a build would
    # wait for in turn.
    with database.lock("building indexes"):
        while True:
            with database.connect() as connection:
                todo = [one for one in missing_indexes(connection) if one.name not in built]
            if not todo:
                return tuple(built)
            total = len(built) + len(todo)
            for index in todo:
                progress("indexes", len(built), total)
                run_beside(database, index.statements, f"building {index.name}", lock_wait)
                built.append(index.name)
            progress("indexes", len(built), total)


def missing_indexes(connection: Connection) -> list[MissingIndex]:
    """Those that an interrupted build left invalid, HNSW of partitions, those of the models.

    An invalid unique index that no model declares belongs to a user, who must fix it.
    """
    declared = {str(index.name): index for t in Base.metadata.sorted_tables for index in t.indexes}
    found = [
        MissingIndex(index.name, (index.rebuild,))
        for index in invalid_indexes(connection)
        if index.rebuild and (not index.unique or index.name in declared)
    ]
    for leaf, statement in unindexed(connection):
        if statement:
            analyze = f"ANALYZE pgdefect.{leaf.table}"
            found.append(MissingIndex(f"{leaf.table}_hnsw", (concurrently(statement), analyze)))
    there = set(
        connection.scalars(
            text("SELECT relname FROM pg_class WHERE relnamespace = 'pgdefect'::regnamespace")
        )
    )
    for name in sorted(declared.keys() - there):
        found.append(MissingIndex(name, _statements(connection, declared[name])))
    return found


def invalid_indexes(connection: Connection) -> Iterator[InvalidIndex]:
    """Indexes that an interrupted build left unusable; one being built now is none."""
    rows = connection.execute(
        text("""
        SELECT quote_ident(c.relname), t.relname, m.amname, c.relname ~ '_cc(new|old)[0-9]*$',
               x.indisunique, c.relkind = 'I'
        FROM pg_index x
        JOIN pg_class c ON c.oid = x.indexrelid
        JOIN pg_class t ON t.oid = x.indrelid
        JOIN pg_am m ON m.oid = c.relam
        WHERE c.relnamespace = 'pgdefect'::regnamespace
          AND NOT (x.indisvalid AND x.indisready AND x.indislive)
          AND NOT EXISTS (SELECT FROM pg_stat_progress_create_index p
                          WHERE p.index_relid = c.oid OR p.relid = t.oid)
        ORDER BY 1""")
    )
    for name, table, method, is_copy, unique, is_parent in rows:
        way = "DROP INDEX" if is_copy else "REINDEX INDEX"
        rebuild = None if is_parent else f"{way} CONCURRENTLY pgdefect.{name}"
        yield InvalidIndex(name, table, method, is_copy, unique, rebuild)


def _statements(connection: Connection, index: Index) -> tuple[str, ...]:
    """Of a partitioned table, each partition's first: the table's own then takes them over."""
    assert index.table is not None
    create = str(CreateIndex(index).compile(dialect=_DIALECT))
    if not index.table.dialect_options["postgresql"]["partition_by"]:
        return (concurrently(create),)
    leaves = connection.scalars(
        text("SELECT relid::regclass::text FROM pg_partition_tree(to_regclass(:t)) WHERE isleaf"),
        {"t": f"pgdefect.{index.table.name}"},
    ).all()
    columns = "_".join(column.name for column in index.columns)
    return (
        *(
            _CREATE.sub(
                f"CREATE INDEX CONCURRENTLY IF NOT EXISTS {leaf.removeprefix('pgdefect.')}_"
                f"{columns}_idx ON {leaf}",
                create,
            )
            for leaf in leaves
        ),
        create,
    )
