"""Binary COPY: what a real server gives back is what was sent."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import psycopg
import pytest
from psycopg import sql

from pgdefect.db.connection import binary_format
from pgdefect.db.connection.binary_format import copy_rows, read_vectors
from pgdefect.db.connection.engine import Database, VectorArray


@pytest.fixture
def connection(database: Database) -> Iterator[psycopg.Connection]:
    with database.autocommit() as connection:
        connection.execute(
            "CREATE TEMP TABLE t (a smallint, b integer, c bigint, v vector, h halfvec)"
        )
        yield connection


def columns(count: int, dim: int = 5) -> list[binary_format.Column]:
    rng = np.random.default_rng(0)
    return [
        ("a", rng.integers(-(2**15), 2**15, count).astype(np.int16)),
        ("b", rng.integers(-(2**31), 2**31, count).astype(np.int32)),
        ("c", rng.integers(-(2**63), 2**63, count, dtype=np.int64)),
        ("v", rng.standard_normal((count, dim)).astype(np.float32)),
        ("h", rng.standard_normal((count, dim)).astype(np.float16)),
    ]


@pytest.mark.parametrize("block_bytes", [1, 300, 4 << 20])
def test_rows_arrive_as_they_were(
    connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    monkeypatch.setattr(binary_format, "_CHUNK_BYTES", block_bytes)
    sent = columns(37)
    said: list[tuple[int, int]] = []
    count = copy_rows(connection, sql.Identifier("t"), sent, progress=lambda *now: said.append(now))
    assert count == 37
    assert said[-1] == (37, 37)
    assert said == sorted(said)
    rows = connection.execute("SELECT a, b, c, v::real[], h::real[] FROM t").fetchall()
    for n, (_, values) in enumerate(sent):
        np.testing.assert_array_equal(
            np.array([row[n] for row in rows], dtype=values.dtype), values
        )


def test_no_rows_are_no_rows(connection: psycopg.Connection) -> None:
    assert copy_rows(connection, sql.Identifier("t"), columns(0)) == 0
    assert connection.execute("SELECT count(*) FROM t").fetchone() == (0,)
    assert connection.execute("SELECT 1").fetchone() == (1,)


def test_extreme_values_arrive(connection: psycopg.Connection) -> None:
    single = np.array([[3.4e38, -3.4e38, 1e-45, 0.0, -0.0]], dtype=np.float32)
    half = np.array([[65504, -65504, 6e-8, 0.0, 1.0]], dtype=np.float16)
    copy_rows(connection, sql.Identifier("t"), [("v", single), ("h", half)])
    row = connection.execute("SELECT v::real[], h::real[] FROM t").fetchone()
    assert row is not None
    np.testing.assert_array_equal(np.array(row[0], dtype=np.float32), single[0])
    np.testing.assert_array_equal(np.array(row[1], dtype=np.float16), half[0])


def test_table_and_columns_are_names_and_not_sql(connection: psycopg.Connection) -> None:
    connection.execute("""CREATE TEMP TABLE "odd; DROP" ("a""b" integer)""")
    copy_rows(connection, sql.Identifier("odd; DROP"), [('a"b', np.arange(3, dtype=np.int32))])
    assert connection.execute("""SELECT sum("a""b") FROM "odd; DROP" """).fetchone() == (3,)


def test_columns_that_do_not_fit_leave_nothing(connection: psycopg.Connection) -> None:
    with pytest.raises(psycopg.Error):
        copy_rows(connection, sql.Identifier("t"), [("a", np.arange(3, dtype=np.int32))])
    assert connection.execute("SELECT count(*) FROM t").fetchone() == (0,)


@pytest.mark.parametrize("shape", [(3, 4), (1, 1), (1000, 65), (0, 4)])
def test_vector_array_parameter_arrives(
    connection: psycopg.Connection, shape: tuple[int, int]
) -> None:
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    rows = connection.execute(
        "SELECT v::real[] FROM unnest(%s) WITH ORDINALITY u(v, n) ORDER BY n",
        [VectorArray(values)],
        binary=True,
    ).fetchall()
    assert len(rows) == len(values)
    if len(values):
        np.testing.assert_array_equal(np.array([row[0] for row in rows], np.float32), values)


@pytest.mark.parametrize("shape", [(3, 4), (1, 1), (1000, 65)])
def test_vectors_read_are_the_vectors_written(
    connection: psycopg.Connection, shape: tuple[int, int]
) -> None:
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    order = np.arange(len(values), dtype=np.int32)
    copy_rows(connection, sql.Identifier("t"), [("b", order), ("v", values)])
    found = read_vectors(connection, sql.SQL("SELECT v FROM t ORDER BY b"))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, values)


def test_vectors_of_no_rows_are_none(connection: psycopg.Connection) -> None:
    assert len(read_vectors(connection, sql.SQL("SELECT v FROM t"))) == 0
    assert connection.execute("SELECT 1").fetchone() == (1,)
