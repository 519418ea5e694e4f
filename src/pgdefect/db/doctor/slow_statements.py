"""The costliest statements, as the server's extension pg_stat_statements has counted them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from pgdefect.core.errors import PermissionDenied, UnsupportedServer
from pgdefect.db.connection.engine import Database
from pgdefect.db.server.embedded import STATISTICS

# By their text: the extension does not count by application.
_OURS = r"\m(pg)?defect\."
_WITHOUT_RIGHT = "<insufficient privilege>"


@dataclass(frozen=True)
class StatementCost:
    """One statement, constants in it as ``$1``.

    Times in milliseconds, planning not counted;

    Attributes:
        rows: returned or changed, in all.
        hit_share: of the blocks that were read, those that were in shared buffers; None where none
            was read.
    """

    query: str
    calls: int
    mean_ms: float
    total_ms: float
    max_ms: float
    rows: int
    hit_share: float | None


@dataclass(frozen=True)
class StatementReport:
    """The costliest statements by time in all; since: when counting began, to the second.

    Attributes:
        hidden: statements of other logins in this database whose text this one may not read.
    """

    since: str
    statements: tuple[StatementCost, ...]
    hidden: int


def costliest(database: Database, limit: int, *, make_extension: bool = False) -> StatementReport:
    """Our statements in this database that took the most time, most first.

    Args:
        make_extension: the server is ours, so that the extension may be made where it is missing.

    Raises:
        UnsupportedServer: the extension is not there or not loaded; the message says what to do.
    """
    with database.autocommit() as connection:
        schema = _extension(connection, make_extension)
        try:
            rows = connection.execute(
                sql.SQL("""
                SELECT query, sum(calls)::bigint, sum(total_exec_time) / sum(calls),
                       sum(total_exec_time), max(max_exec_time), sum(rows)::bigint,
                       sum(shared_blks_hit)::float
                           / nullif(sum(shared_blks_hit + shared_blks_read), 0)
                FROM {}.pg_stat_statements
                WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
                  AND query ~ %s
                GROUP BY query HAVING sum(calls) > 0
                ORDER BY 4 DESC, 1 LIMIT %s""").format(schema),
                [_OURS, limit],
            ).fetchall()
            row = connection.execute(
                sql.SQL("""
                SELECT (SELECT date_trunc('second', stats_reset)::text
                        FROM {0}.pg_stat_statements_info),
                       (SELECT count(*) FROM {0}.pg_stat_statements
                        WHERE query = %s AND dbid = (
                            SELECT oid FROM pg_database WHERE datname = current_database()))
                """).format(schema),
                [_WITHOUT_RIGHT],
            ).fetchone()
        except psycopg.errors.ObjectNotInPrerequisiteState as error:
            raise _not_loaded(database, make_extension) from error
    assert row is not None
    return StatementReport(row[0], tuple(StatementCost(*one) for one in rows), row[1])


def reset(database: Database, *, make_extension: bool = False) -> None:
    """Forget what was counted of this database, of all logins.

    Raises:
        UnsupportedServer: as `costliest` does.
        PermissionDenied: this login may not.
    """
    with database.autocommit() as connection:
        schema = _extension(connection, make_extension)
        try:
            connection.execute(
                sql.SQL(
                    "SELECT {}.pg_stat_statements_reset(0, oid, 0) FROM pg_database "
                    "WHERE datname = current_database()"
                ).format(schema)
            )
        except psycopg.errors.ObjectNotInPrerequisiteState as error:
            raise _not_loaded(database, make_extension) from error
        except psycopg.errors.InsufficientPrivilege as error:
            raise PermissionDenied(
                "this login may not reset the counts. Have an administrator run: GRANT EXECUTE ON "
                "FUNCTION pg_stat_statements_reset TO this login"
            ) from error


def _extension(connection: psycopg.Connection[Any], make: bool) -> sql.Identifier:
    """The schema that the extension's functions are in."""
    find = (
        "SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace "
        "WHERE e.extname = %s"
    )
    row = connection.execute(find, [STATISTICS]).fetchone()
    if row is None and make:
        connection.execute(
            sql.SQL("CREATE EXTENSION IF NOT EXISTS {}").format(sql.Identifier(STATISTICS))
        )
        row = connection.execute(find, [STATISTICS]).fetchone()
    if row is None:
        raise UnsupportedServer(
            f"this database does not have the extension {STATISTICS}, which counts statements. "
            "Have an administrator add it to shared_preload_libraries, restart the server, and run "
            f"in this database: CREATE EXTENSION {STATISTICS}"
        )
    return sql.Identifier(row[0])


def _not_loaded(database: Database, ours: bool) -> UnsupportedServer:
    remedy = (
        "It was started by an older pgdefect, or user.conf says otherwise. Restart it: pgdefect "
        "db down, then pgdefect db up"
        if ours
        else "Have an administrator add it there and restart the server"
    )
    return UnsupportedServer(
        f"the server at {database.safe_url} has not loaded {STATISTICS} "
        f"(shared_preload_libraries), so that it counts no statements. {remedy}"
    )
