"""HNSW indexes: how they are defined, and what their builds are given."""

from __future__ import annotations

from typing import Any

import psycopg
from sqlalchemy import Connection, exc, text

from pgdefect.core.distance import COSINE, IndexedType, Metric, index_expression, indexed_type

INDEX_OPTIONS = "m = 12, ef_construction = 112"
"""Fewer links than pgvector's 16 make a search shorter, and looking longer for them (64) makes up
for it: on 20,000 vectors a search takes four fifths of the time at recall 0.99, and half as many
patches seem farther than the image's worst. The build takes as long."""
PARALLEL_WORKERS = 8
"""Asked for; max_parallel_maintenance_workers decides."""
PARALLEL_VECTORS = 5_000


def bank_index(partition: str, kind: IndexedType, dim: int, metric: Metric) -> str:
    """The statement that indexes a memory bank's partition.

    Raises UsageError where pgvector cannot index vectors of `dim`.
    """
    return f"{_index(partition, kind, dim, metric)} WITH ({INDEX_OPTIONS})"


def extractor_index(partition: str, dim: int) -> str:
    """The statement that indexes an extractor's partition; raises as `bank_index`."""
    return _index(partition, indexed_type("half", dim), dim, COSINE)


def _index(partition: str, kind: IndexedType, dim: int, metric: Metric) -> str:
    return (
        f"CREATE INDEX {partition}_hnsw ON pgdefect.{partition} "
        f"USING hnsw (({index_expression(kind, dim)}) {metric.operator_class(kind)})"
    )


def build_index(connection: Connection, table: str, statement: str, num_vectors: int) -> None:
    """Build an HNSW index with several processes, where the table is large enough for that.

    table: with its schema, as SQL has it; new in this transaction.
    """
    workers = PARALLEL_WORKERS if num_vectors >= PARALLEL_VECTORS else 0
    try:
        # Left to itself the server builds tables of less than 8 MB alone.
        _set_workers(connection, table, workers)
        with connection.begin_nested():
            connection.exec_driver_sql(statement)
    except exc.OperationalError as error:
        # Workers share memory, and a container may have too little of it (class 53). What else
        # there is, a lost connection or a statement's time limit, would only happen again.
        if not str(getattr(error.orig, "sqlstate", "")).startswith("53"):
            raise
        _set_workers(connection, table, 0)
        connection.exec_driver_sql(statement)
    connection.execute(text(f"ALTER TABLE {table} RESET (parallel_workers)"))


def _set_workers(connection: Connection, table: str, workers: int) -> None:
    connection.execute(text(f"ALTER TABLE {table} SET (parallel_workers = {workers})"))


def give_memory(connection: psycopg.Connection[Any]) -> None:
    """Let index builds take what the largest graph needs, up to a quarter of the cache's size.

    For the transaction, or the session where there is none. effective_cache_size is what the
    server's administrator says there is for caches in all. A graph in memory has links beside
    its vectors: about as much again for short ones.
    """
    connection.execute(
        """
        SELECT set_config('maintenance_work_mem', greatest(
            pg_size_bytes(current_setting('maintenance_work_mem')),
            least(
                pg_size_bytes(current_setting('effective_cache_size')) / 4,
                (SELECT 2 * max(pg_relation_size(oid)) + (64 << 20) FROM pg_class
                 WHERE relnamespace = 'pgdefect'::regnamespace AND relkind = 'r')
            )) / 1024 || 'kB', %s)""",
        [not connection.autocommit],
    )
