"""The one table of metrics: how pgvector spells each, and how NumPy computes it.

Index and query both read it, so an index built for one metric is never asked for another. All
that differs between metrics is a field of :class:`Metric`; nothing else asks which one it has.
A memory bank stores the operator and the type it was indexed for. To add a metric, add a row to
`METRICS` and a migration that lets its operator into ``memory_bank``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pgdefect.core.arrays import Float32, Float64
from pgdefect.core.errors import UsageError
from pgdefect.core.wording import option

Precision = Literal["half", "single"]
IndexedType = Literal["vector", "halfvec"]


@dataclass(frozen=True)
class Metric:
    """A distance between vectors.

    Attributes:
        name: As options, rows and messages spell it.
        operator: pgvector's operator.
        vector_ops: pgvector's operator class for HNSW over ``vector``.
        halfvec_ops: The same over ``halfvec``.
        row_distance: Distances `(n,)` between the rows of two arrays `(n, dim)`.
        pairwise: Distances `(n, m)` between all rows of `(n, dim)` and of `(m, dim)`.
        rank_products: Makes of a bank `(m, dim)` directions `(m, dim)` and offsets `(m,)` such
            that query · direction - offset is largest for the nearest vector, which a matrix
            product finds fast. None where a metric has no such form: `pairwise` ranks then.
        seen: Vectors `(n, dim)` without what the metric ignores.
        length: Distances as lengths that can be weighed against each other; PatchCore's
            softmax is over these.
        length_sql: SQL text for the same, of the double precision variable ``distance``.
        directions_only: Whether it compares directions: a zero vector has no distance, and
            pgvector's index does not hold one.
    """

    name: str
    operator: str
    vector_ops: str
    halfvec_ops: str
    row_distance: Callable[[Float64, Float64], Float64]
    pairwise: Callable[[Float64, Float64], Float64]
    rank_products: Callable[[Float32], tuple[Float32, Float32]] | None = None
    seen: Callable[[Float32], Float32] = lambda vectors: vectors
    length: Callable[[Float64], Float64] = lambda distances: distances
    length_sql: str = "distance"
    directions_only: bool = False

    def operator_class(self, indexed_type: IndexedType) -> str:
        return self.halfvec_ops if indexed_type == "halfvec" else self.vector_ops


def _unit(vectors: Float64) -> Float64:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def _unit32(vectors: Float32) -> Float32:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


def _cosine_of_rows(a: Float64, b: Float64) -> Float64:
    # |x-y|²/2 equals 1 - x·y for unit vectors and keeps its digits near zero.
    return np.asarray(0.5 * ((_unit(a) - _unit(b)) ** 2).sum(axis=1))


def _cosine_pairwise(a: Float64, b: Float64) -> Float64:
    return np.asarray((1.0 - _unit(a) @ _unit(b).T).clip(0.0, 2.0))


def _cosine_products(bank: Float32) -> tuple[Float32, Float32]:
    # Divided by their norms: vectors in half precision are off by 1e-3, which is not nothing.
    norms = np.sqrt(np.einsum("nd,nd->n", bank, bank))
    return bank / norms[:, None], np.zeros(len(bank), dtype=np.float32)


def _l2_of_rows(a: Float64, b: Float64) -> Float64:
    return np.asarray(np.sqrt(((a - b) ** 2).sum(axis=1)))


def _l2_pairwise(a: Float64, b: Float64) -> Float64:
    squared = (a**2).sum(1)[:, None] + (b**2).sum(1)[None, :] - 2.0 * (a @ b.T)
    return np.asarray(np.sqrt(squared.clip(0.0)))


def _l2_products(bank: Float32) -> tuple[Float32, Float32]:
    # |q-b|² is least where q·b - |b|²/2 is largest.
    return bank, np.float32(0.5) * np.einsum("nd,nd->n", bank, bank)


COSINE = Metric(
    "cosine",
    "<=>",
    "vector_cosine_ops",
    "halfvec_cosine_ops",
    row_distance=_cosine_of_rows,
    pairwise=_cosine_pairwise,
    rank_products=_cosine_products,
    seen=_unit32,
    # The Euclidean distance of unit vectors.
    length=lambda distances: np.asarray(np.sqrt(2.0 * distances.clip(0.0))),
    length_sql="sqrt(2 * greatest(distance, 0))",
    directions_only=True,
)
L2 = Metric(
    "l2",
    "<->",
    "vector_l2_ops",
    "halfvec_l2_ops",
    row_distance=_l2_of_rows,
    pairwise=_l2_pairwise,
    rank_products=_l2_products,
)
METRICS: dict[str, Metric] = {metric.name: metric for metric in (COSINE, L2)}
"""By name. Same rule in SQL: pgdefect.metric_length."""

MAX_INDEXED_DIM: dict[IndexedType, int] = {"vector": 2000, "halfvec": 4000}
"""pgvector's limits for an HNSW index (pgvector README, "HNSW")."""
_QUERY_BLOCK, _BANK_BLOCK = 256, 1024


def metric_named(name: str) -> Metric:
    """The metric called `name`; raises :class:`UsageError` listing the known ones."""
    try:
        return METRICS[name]
    except KeyError:
        raise UsageError(f"unknown metric {name!r}; known: {', '.join(sorted(METRICS))}") from None


def indexed_type(precision: Precision, dim: int) -> IndexedType:
    """The type that a memory bank's vectors are indexed as.

    Values rounded to half precision are indexed in single where they are not too long:
    pgvector's cosine index keeps unit vectors, and as halfvec it would round those once more
    and rank by other numbers than the exact search (recall@1 then ends at 0.987, whatever
    ef_search).

    Same rule in SQL: pgdefect.searched_vectors.
    """
    return "halfvec" if precision == "half" and dim > MAX_INDEXED_DIM["vector"] else "vector"


def index_expression(kind: IndexedType, dim: int) -> str:
    """The indexed expression over the untyped column; a query must use the same one.

    Raises :class:`UsageError` where pgvector cannot index `dim` dimensions.
    """
    if not 1 <= dim <= MAX_INDEXED_DIM[kind]:
        raise UsageError(
            f"pgvector indexes at most {MAX_INDEXED_DIM[kind]} dimensions as {kind}, and these "
            f"vectors have {dim}; tap fewer layers, or reduce a memory bank's with "
            f"{option('pca_dim')}"
        )
    return f"embedding::{kind}({dim})"


def as_stored(vectors: Float32, precision: Precision) -> Float32:
    """Round float32 `(n, dim)` to what the database keeps, so both sides compare alike.

    Raises :class:`ValueError` for values half precision cannot hold.
    """
    if precision == "single":
        return np.ascontiguousarray(vectors, dtype=np.float32)
    with np.errstate(over="ignore"):
        half = vectors.astype(np.float16)
    if not np.isfinite(half).all():
        raise ValueError("embedding values exceed half precision's range of ±65504")
    return half.astype(np.float32)


def pairwise(metric: Metric, queries: Float32, vectors: Float32) -> Float32:
    """Distances `(num_queries, num_vectors)`, computed in double precision: the reference."""
    distances = metric.pairwise(queries.astype(np.float64), vectors.astype(np.float64))
    return np.asarray(distances, dtype=np.float32)


def nearest_vectors(
    queries: Float32, bank: Float32, metric: Metric
) -> tuple[NDArray[np.int32], Float32]:
    """Exact nearest bank vector of each query: positions `(n,)` and distances `(n,)`.

    Found with float32 matrix products in blocks that stay in cache, where the metric has such a
    form, so the memory beyond the input is a copy of the bank; the distance of the nearest is
    then recomputed in double precision. Between vectors whose distances agree to rounding any
    one may be named.
    """
    positions = np.zeros(len(queries), dtype=np.int32)
    nearness = _nearness(bank, metric)
    for first in range(0, len(queries), _QUERY_BLOCK):
        block = queries[first : first + _QUERY_BLOCK]
        here = positions[first : first + _QUERY_BLOCK]
        best = np.full(len(block), -np.inf, dtype=np.float32)
        rows = np.arange(len(block))
        for start in range(0, len(bank), _BANK_BLOCK):
            near = nearness(block, slice(start, start + _BANK_BLOCK))
            index = near.argmax(axis=1)
            value = near[rows, index]
            better = value > best
            best[better] = value[better]
            here[better] = index[better] + start
    return positions, row_distances(queries, bank[positions], metric)


def _nearness(bank: Float32, metric: Metric) -> Callable[[Float32, slice], Float32]:
    """What is larger the nearer a bank vector: of queries and a part of the bank `(n, m)`."""
    if metric.rank_products is None:
        return lambda queries, part: -pairwise(metric, queries, bank[part])
    directions, offsets = metric.rank_products(bank)

    def products(queries: Float32, part: slice) -> Float32:
        found: Float32 = queries @ directions[part].T
        found -= offsets[part]
        return found

    return products


def row_distances(a: Float32, b: Float32, metric: Metric) -> Float32:
    """Distance of each row of `a` to the same row of `b`, `(n,)`, in double precision."""
    distances = metric.row_distance(a.astype(np.float64), b.astype(np.float64))
    return np.asarray(distances, dtype=np.float32)
