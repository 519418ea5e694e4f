"""HNSW indexes: how they are defined, and what their builds are given.

Every number that an index or a search of one depends on:

=====================  ========================================================================
m, ef_construction     `BANK_BUILD` and `EXTRACTOR_BUILD` below. `pgdefect doctor` compares them
                       with the indexes that there are; a repair builds those that differ again.
ef_search of a bank    Calibrated on each bank when it is trained (`db/records/patchcore.py`):
                       ``memory_bank.ef_search`` and, for a coarser map, ``ef_search_fast``.
ef_search of an        What a recall check stored in ``search_setting``, else
extractor's vectors    100 (``pgdefect.searched_vectors``).
=====================  ========================================================================

The functions that search have a clause ``SET hnsw.ef_search = 40`` (pgvector's default). Its
number is not used: each sets the right one by ``set_config`` before it searches. The clause is
there because Postgres restores a setting named in one when the function returns, so that a
search never changes its caller's session.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import psycopg
from sqlalchemy import Connection, exc, text

from pgdefect.core.distance import COSINE, IndexedType, Metric, index_expression, indexed_type


class Build(NamedTuple):
    """What decides an HNSW graph beside its vectors.

    Attributes:
        m: links of a vector in each layer (twice as many in the lowest).
        ef_construction: length of the candidate list while links are chosen.
    """

    m: int
    ef_construction: int


PGVECTOR_DEFAULT = Build(16, 64)
"""Of an index that names no parameters."""
BANK_BUILD = Build(12, 112)
"""Of memory banks: a thousand searches an image, each for the one nearest vector.

Fewer links than pgvector's 16 make a search shorter, and looking longer for them (64) makes up
for it: on 20,000 vectors a search takes four fifths of the time at recall 0.99, and half as many
patches seem farther than the image's worst. The build takes as long."""
EXTRACTOR_BUILD = PGVECTOR_DEFAULT
"""Of image, defect and region embeddings: one search a question, for tens of neighbors, often
behind a filter that makes it walk on. Nothing was measured that pgvector's own would lose to."""
PARALLEL_WORKERS = 8
"""Asked for; max_parallel_maintenance_workers decides."""
PARALLEL_VECTORS = 5_000


class HnswIndex(NamedTuple):
    """The definition of a partition's index; two that are equal find the same alike."""

    kind: IndexedType
    dim: int
    operator_class: str
    build: Build

    def __str__(self) -> str:
        m, ef_construction = self.build
        return (
            f"{self.kind}({self.dim}) {self.operator_class}, m = {m}, "
            f"ef_construction = {ef_construction}"
        )

    def create(self, partition: str, name: str = "") -> str:
        """The statement that makes it, called `name`, else for its partition.

        Raises:
            UsageError: where pgvector cannot index vectors of this dimension.
        """
        m, ef_construction = self.build
        options = f" WITH (m = {m}, ef_construction = {ef_construction})"
        return (
            f"CREATE INDEX {name or index_name(partition)} ON pgdefect.{partition} "
            f"USING hnsw (({index_expression(self.kind, self.dim)}) {self.operator_class})"
            f"{options if self.build != PGVECTOR_DEFAULT else ''}"
        )


def index_name(partition: str) -> str:
    """What the HNSW index of a partition is called."""
    return f"{partition}_hnsw"


def bank_index(kind: IndexedType, dim: int, metric: Metric) -> HnswIndex:
    """The index of a memory bank's partition."""
    return HnswIndex(kind, dim, metric.operator_class(kind), BANK_BUILD)


def extractor_index(dim: int) -> HnswIndex:
    """The index of an extractor's partition of image, defect or region embeddings."""
    kind = indexed_type("half", dim)
    return HnswIndex(kind, dim, COSINE.operator_class(kind), EXTRACTOR_BUILD)


def build_index(connection: Connection, table: str, statement: str, num_vectors: int) -> None:
    """Build an HNSW index with several processes, where the table is large enough for that.

    Args:
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
