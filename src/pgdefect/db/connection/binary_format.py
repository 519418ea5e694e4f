"""Vectors in Postgres's binary formats, built for whole arrays at once.

COPY's layout is documented under "Binary Format" of the COPY command, an array's in
``array_recv``, pgvector's in its ``vector_recv`` and ``halfvec_recv``: dimension and a
reserved word as int16, then the values, all big-endian. No other module knows these layouts.

pgvector's own adapters (pgvector.psycopg) convert vector by vector, which takes many times as
long for the thousands of an image or a bank.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg import sql

_HEADER = b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 0)
_TRAILER = struct.pack(">h", -1)
_CHUNK_BYTES = 4 << 20
_SINGLE, _HALF = np.dtype(np.float32), np.dtype(np.float16)

Column = tuple[str, NDArray[Any]]


def _vector_fields(values: np.dtype[Any], dim: int) -> list[Any]:
    """Pgvector's layout of one vector, as fields of a NumPy record."""
    return [("dim", ">i2"), ("reserved", ">i2"), ("value", values.newbyteorder(">"), (dim,))]


def copy_rows(
    connection: psycopg.Connection[Any],
    table: sql.Composable,
    columns: Sequence[Column],
    *,
    rows: NDArray[np.intp] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """COPY equally long columns into `table`; returns the number of rows.

    A 1-D integer array becomes smallint, integer or bigint by its item size; a 2-D float32 array
    becomes ``vector``, a 2-D float16 array ``halfvec``.

    Args:
        rows: numbers of those to copy, instead of all.
    """
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(
        table, sql.SQL(", ").join(sql.Identifier(name) for name, _ in columns)
    )
    num_rows = len(columns[0][1] if rows is None else rows)
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        copy.write(_HEADER)
        for done, block in _encode([values for _, values in columns], rows):
            copy.write(block)
            if progress is not None:
                progress(done, num_rows)
        copy.write(_TRAILER)
    return num_rows


def _encode(
    columns: Sequence[NDArray[Any]], rows: NDArray[np.intp] | None
) -> Iterator[tuple[int, bytes]]:
    fields: list[tuple[str, Any] | tuple[str, Any, tuple[int, ...]]] = [("count", ">i2")]
    for index, values in enumerate(columns):
        fields.append((f"length{index}", ">i4"))
        if values.ndim == 2:
            fields += [(f"dim{index}", ">i2"), (f"reserved{index}", ">i2")]
            fields.append((f"value{index}", values.dtype.newbyteorder(">"), values.shape[1:]))
        else:
            fields.append((f"value{index}", values.dtype.newbyteorder(">")))
    row = np.dtype(fields)
    num_rows = len(columns[0] if rows is None else rows)
    step = max(1, _CHUNK_BYTES // row.itemsize)
    for start in range(0, num_rows, step):
        stop = min(start + step, num_rows)
        block = np.zeros(stop - start, dtype=row)
        block["count"] = len(columns)
        chosen = slice(start, stop) if rows is None else rows[start:stop]
        for index, values in enumerate(columns):
            block[f"value{index}"] = values[chosen]
            width = values.dtype.itemsize
            if values.ndim == 2:
                width = 4 + width * values.shape[1]
                block[f"dim{index}"] = values.shape[1]
            block[f"length{index}"] = width
        yield stop, block.tobytes()


def vector_binary(values: NDArray[np.float32]) -> bytes:
    """A float32 `(dim,)` array as one ``vector`` parameter."""
    return struct.pack(">hh", len(values), 0) + values.astype(">f4").tobytes()


def vector_array_binary(values: NDArray[np.floating], element_oid: int) -> bytes:
    """A float32 `(n, dim)` matrix as one ``vector[]`` parameter, a float16 one as ``halfvec[]``."""
    num, dim = values.shape
    header = struct.pack(">iiI", 1 if num else 0, 0, element_oid)
    if num == 0:
        return header
    row = np.dtype([("length", ">i4"), *_vector_fields(values.dtype, dim)])
    block = np.zeros(num, dtype=row)
    block["length"] = 4 + values.dtype.itemsize * dim
    block["dim"] = dim
    block["value"] = values
    return header + struct.pack(">ii", num, 1) + block.tobytes()


def read_vectors(connection: psycopg.Connection[Any], query: sql.Composable) -> NDArray[np.float32]:
    """The one ``vector`` column of a query as a float32 `(n, dim)` matrix, by binary COPY.

    All vectors must have the same dimension.
    """
    with connection.cursor() as cursor:
        statement = sql.SQL("COPY ({}) TO STDOUT (FORMAT binary)").format(query)
        with cursor.copy(statement) as copy:
            content = b"".join(bytes(block) for block in copy)
    body = content[len(_HEADER) : -len(_TRAILER)]
    if not body:
        return np.empty((0, 0), dtype=np.float32)
    (dim,) = struct.unpack_from(">h", body, 6)
    row = np.dtype([("count", ">i2"), ("length", ">i4"), *_vector_fields(_SINGLE, dim)])
    return np.frombuffer(body, dtype=row)["value"].astype(np.float32)


def integers_sent(content: bytes) -> NDArray[np.int32]:
    """Integers as ``int4send`` gives them, one after another: `(n,)`."""
    return np.frombuffer(content, ">i4").astype(np.int32)


def vectors_sent(content: bytes, *, half: bool = False) -> NDArray[np.floating[Any]]:
    """Vectors of one dimension as ``vector_send`` gives them, one after another: `(n, dim)`.

    float32; of ``halfvec_send`` with `half`, float16.
    """
    (dim,) = struct.unpack_from(">h", content)
    values = _HALF if half else _SINGLE
    found = np.frombuffer(content, dtype=np.dtype(_vector_fields(values, dim)))["value"]
    return found.astype(values)


def read_keyed_vectors(
    connection: psycopg.Connection[Any], query: sql.Composable, block_rows: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """A query's ``bigint`` and ``vector`` columns in blocks: keys `(n,)`, vectors `(n, dim)`.

    All vectors must have the same dimension; no more than a block or two is held at once.
    """
    statement = sql.SQL("COPY ({}) TO STDOUT (FORMAT binary)").format(query)
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        row: np.dtype[Any] | None = None
        pending = bytearray()
        for block in copy:
            pending += block
            if row is None and len(pending) >= len(_HEADER) + 22:
                del pending[: len(_HEADER)]
                (dim,) = struct.unpack_from(">h", pending, 18)
                key: list[Any] = [("count", ">i2"), ("key_length", ">i4"), ("key", ">i8")]
                row = np.dtype([*key, ("length", ">i4"), *_vector_fields(_SINGLE, dim)])
            # What is left at the end is the trailer, shorter than a row.
            while row is not None and len(pending) >= block_rows * row.itemsize:
                yield _keyed(pending, block_rows, row)
        if row is not None and (rest := len(pending) // row.itemsize):
            yield _keyed(pending, rest, row)


def _keyed(
    pending: bytearray, num_rows: int, row: np.dtype[Any]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Take the first rows out of `pending`."""
    found = np.frombuffer(bytes(pending[: num_rows * row.itemsize]), dtype=row)
    del pending[: num_rows * row.itemsize]
    return found["key"].astype(np.int64), found["value"].astype(np.float32)
