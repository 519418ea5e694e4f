"""Rows and vectors out of the database in bounded memory, all of one instant.

A server-side cursor hands over a block of rows at a time, in Postgres's binary formats:
vectors stay bytes until a whole block becomes one array (`binary_format` has the layout).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

import psycopg
from numpy.typing import NDArray
from psycopg import sql

from pgdefect.db.connection.binary_format import vectors_sent
from pgdefect.db.connection.engine import Database

BLOCK_ROWS = 4096

Kind = Literal["int16", "int32", "int64", "float32", "float64", "bool", "text", "time", "vector",
               "halfvec", "texts", "matrix"]  # fmt: skip
_KINDS: dict[str, Kind] = {
    "int2": "int16",
    "int4": "int32",
    "int8": "int64",
    "float4": "float32",
    "float8": "float64",
    "bool": "bool",
    "text": "text",
    "timestamptz": "time",
    "vector": "vector",
    "halfvec": "halfvec",
    "_text": "texts",
    "_float4": "matrix",
}
"""By the name in pg_type; jsonb becomes its text, and so does what is not listed."""


@dataclass(frozen=True)
class Column:
    """A column of a result; dim is that of its vectors, 0 where it has none."""

    name: str
    kind: Kind
    dim: int = 0


@dataclass(frozen=True)
class Result:
    """A query's columns, number of rows, and the rows in blocks.

    A block holds one value per column: an array `(n, dim)`, float16 of ``halfvec`` and float32
    of ``vector``, or a list with None for NULL.
    """

    columns: tuple[Column, ...]
    num_rows: int
    blocks: Iterator[list[list[Any] | NDArray[Any]]]


@contextmanager
def snapshot(database: Database) -> Iterator[psycopg.Connection[Any]]:
    """A connection that may only read, and sees one instant however long the reading takes."""
    with database.autocommit() as connection:
        connection.read_only = True
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.autocommit = False
        yield connection


def has_rows(connection: psycopg.Connection[Any], query: sql.Composable) -> bool:
    """Whether a query gives any row."""
    row = connection.execute(sql.SQL("SELECT EXISTS ({})").format(query)).fetchone()
    return row is not None and bool(row[0])


def read_blocks(
    connection: psycopg.Connection[Any],
    query: sql.Composable,
    parameters: Sequence[Any] = (),
    *,
    block_rows: int = BLOCK_ROWS,
) -> Result:
    """Run a query in a `snapshot` and read it block by block.

    All vectors of a column must have the same dimension; the query is run three times, for its
    columns, the number of rows and the rows, which in a snapshot agree.
    """
    columns = _columns(connection, query, parameters)
    counted = connection.execute(
        sql.SQL("SELECT count(*) FROM ({}) q").format(query), parameters
    ).fetchone()
    assert counted is not None
    return Result(columns, counted[0], _blocks(connection, query, parameters, columns, block_rows))


def _columns(
    connection: psycopg.Connection[Any], query: sql.Composable, parameters: Sequence[Any]
) -> tuple[Column, ...]:
    cursor = connection.execute(sql.SQL("SELECT * FROM ({}) q LIMIT 0").format(query), parameters)
    assert cursor.description is not None
    described = [(column.name, column.type_code) for column in cursor.description]
    names: dict[int, str] = dict(
        connection.execute(
            "SELECT oid::bigint, typname FROM pg_type WHERE oid = ANY(%s::oid[])",
            [[oid for _, oid in described]],
        ).fetchall()
    )
    columns = []
    for name, oid in described:
        kind = _KINDS.get(names[oid], "text")
        dim = 0
        if kind in ("vector", "halfvec"):
            found = connection.execute(
                sql.SQL("SELECT vector_dims({}) FROM ({}) q LIMIT 1").format(
                    sql.Identifier(name), query
                ),
                parameters,
            ).fetchone()
            dim = found[0] if found else 0
        columns.append(Column(name, kind, dim))
    return tuple(columns)


def _blocks(
    connection: psycopg.Connection[Any],
    query: sql.Composable,
    parameters: Sequence[Any],
    columns: tuple[Column, ...],
    block_rows: int,
) -> Iterator[list[list[Any] | NDArray[Any]]]:
    wanted = sql.SQL(", ").join(
        # jsonb and the types we do not know come as text, which every reader understands.
        sql.SQL("{}::text").format(sql.Identifier(column.name))
        if column.kind == "text"
        else sql.Identifier(column.name)
        for column in columns
    )
    # Not psycopg's own server-side cursor: where a statement is cancelled after its rows were sent,
    # that one reports "received 2 results" and not the cause.
    connection.execute(
        sql.SQL("DECLARE pgdefect_export NO SCROLL CURSOR FOR SELECT {} FROM ({}) q").format(
            wanted, query
        ),
        parameters,
    )
    fetch = sql.SQL("FETCH FORWARD {} FROM pgdefect_export").format(block_rows)
    try:
        with connection.cursor(binary=True) as cursor:
            while rows := cursor.execute(fetch).fetchall():
                yield [
                    vectors_sent(b"".join(values), half=column.kind == "halfvec")
                    if column.dim
                    else list(values)
                    for column, values in zip(columns, zip(*rows, strict=True), strict=True)
                ]
    finally:
        # In a transaction that failed it is gone.
        with suppress(psycopg.Error):
            connection.execute("CLOSE pgdefect_export")
