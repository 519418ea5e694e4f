"""The one table of metrics: SQL operator, HNSW operator class, distances in NumPy.

Index and query both read it, so an index built for one metric is never asked for
another. A memory bank stores the operator and the type it was indexed for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pgdefect.core.errors import UsageError
from pgdefect.core.wording import option

Precision = Literal["half", "single"]
IndexedType = Literal["vector", "halfvec"]


@dataclass(frozen=True)
class Metric:
    """A distance as pgvector spells it; `vector_ops`/`halfvec_ops` name operator classes."""

    name: str
    operator: str
    vector_ops: str
    halfvec_ops: str

    def operator_class(self, indexed_type: IndexedType) -> str:
        return self.halfvec_ops if indexed_type == "halfvec" else self.vector_ops


COSINE = Metric("cosine", "<=>", "vector_cosine_ops", "halfvec_cosine_ops")
L2 = Metric("l2", "<->", "vector_l2_ops", "halfvec_l2_ops")
METRICS: dict[str, Metric] = {metric.name: metric for metric in (COSINE, L2)}

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


def as_stored(vectors: NDArray[np.float32], precision: Precision) -> NDArray[np.float32]:
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


def pairwise(
    metric: Metric, queries: NDArray[np.float32], vectors: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Distances `(num_queries, num_vectors)`, computed in double precision: the reference."""
    a = queries.astype(np.float64)
    b = vectors.astype(np.float64)
    if metric is COSINE:
        a = a / np.linalg.norm(a, axis=1, keepdims=True)
        b = b / np.linalg.norm(b, axis=1, keepdims=True)
        return np.asarray((1.0 - a @ b.T).clip(0.0, 2.0), dtype=np.float32)
    squared = (a**2).sum(1)[:, None] + (b**2).sum(1)[None, :] - 2.0 * (a @ b.T)
    return np.asarray(np.sqrt(squared.clip(0.0)), dtype=np.float32)


def nearest_vectors(
    queries: NDArray[np.float32], bank: NDArray[np.float32], metric: Metric
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Exact nearest bank vector of each query: positions `(n,)` and distances `(n,)`.

    Found with float32 matrix products in blocks that stay in cache, so the memory beyond
    the input is a copy of the bank; the distance of the nearest is then recomputed in
    double precision. Between vectors whose distances agree to rounding any one may be named.
    """
    positions = np.zeros(len(queries), dtype=np.int32)
    # Ranking by q·b - |b|²/2 ranks by Euclidean distance, by q·b/|b| by cosine distance; for
    # |b| = 1 they agree, but vectors in half precision are off by 1e-3, which is not nothing.
    squares = np.einsum("nd,nd->n", bank, bank)
    directions = bank / np.sqrt(squares)[:, None] if metric is COSINE else bank
    for first in range(0, len(queries), _QUERY_BLOCK):
        block = queries[first : first + _QUERY_BLOCK]
        here = positions[first : first + _QUERY_BLOCK]
        best = np.full(len(block), -np.inf, dtype=np.float32)
        rows = np.arange(len(block))
        for start in range(0, len(bank), _BANK_BLOCK):
            products = block @ directions[start : start + _BANK_BLOCK].T
            if metric is not COSINE:
                products -= 0.5 * squares[start : start + _BANK_BLOCK]
            index = products.argmax(axis=1)
            value = products[rows, index]
            better = value > best
            best[better] = value[better]
            here[better] = index[better] + start
    return positions, row_distances(queries, bank[positions], metric)


def row_distances(
    a: NDArray[np.float32], b: NDArray[np.float32], metric: Metric
) -> NDArray[np.float32]:
    """Distance of each row of `a` to the same row of `b`, `(n,)`, in double precision."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    if metric is COSINE:
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        y /= np.linalg.norm(y, axis=1, keepdims=True)
        # |x-y|²/2 equals 1 - x·y for unit vectors and keeps its digits near zero.
        return np.asarray(0.5 * ((x - y) ** 2).sum(axis=1), dtype=np.float32)
    return np.asarray(np.sqrt(((x - y) ** 2).sum(axis=1)), dtype=np.float32)
