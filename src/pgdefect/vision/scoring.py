"""From patch distances to scores: image score, normalized score. Pure NumPy."""

from __future__ import annotations

import math

import numpy as np

from pgdefect.distance import COSINE, Metric
from pgdefect.types import Float32, Int32

__all__ = [
    "nearest_vectors",
    "normalized_score",
    "reweighted",
    "row_distances",
]

_QUERY_BLOCK, _BANK_BLOCK = 256, 1024


def nearest_vectors(queries: Float32, bank: Float32, metric: Metric) -> tuple[Int32, Float32]:
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


def row_distances(a: Float32, b: Float32, metric: Metric) -> Float32:
    """Distance of each row of `a` to the same row of `b`, `(n,)`, in double precision."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    if metric is COSINE:
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        y /= np.linalg.norm(y, axis=1, keepdims=True)
        # |x-y|²/2 equals 1 - x·y for unit vectors and keeps its digits near zero.
        return np.asarray(0.5 * ((x - y) ** 2).sum(axis=1), dtype=np.float32)
    return np.asarray(np.sqrt(((x - y) ** 2).sum(axis=1)), dtype=np.float32)


def reweighted(score: float, support_distances: Float32, metric: Metric) -> float:
    """PatchCore's image score, equation 7 (Roth et al., arXiv 2106.08265).

    score: the worst patch's distance; support_distances `(num_neighbors,)`: distances of
    that patch to the nearest bank vectors of its nearest bank vector m*, m* first. The
    softmax is over Euclidean distances; a cosine distance d of unit vectors is √(2d).
    With a single neighbor the weight is 1.
    """
    if len(support_distances) <= 1:
        return score
    euclidean = support_distances.astype(np.float64)
    if metric is COSINE:
        euclidean = np.sqrt(2.0 * euclidean.clip(0.0))
    weights = np.exp(euclidean - euclidean.max())
    return float(score * (1.0 - weights[0] / weights.sum()))


def normalized_score(raw: float, threshold: float, center: float) -> float:
    """Raw score on a scale shared by all detectors: 0.25 at the center, 0.5 at the threshold.

    With the unit threshold - center and the excess e over the threshold in such units it is
    1 - 1 / (2 + 2e) above and 1 / (2 - 2e) below: rising everywhere, in floating point too, and
    never reaching 1. Scores as single precision tells them apart keep their ranking up to
    a million units. The database has the same in ``pgdefect.normalized_score``.
    """
    unit = threshold - center
    excess = raw - threshold
    tail = 0.5 * unit / (unit + abs(excess))
    return tail if excess < 0.0 else min(1.0 - tail, math.nextafter(1.0, 0.0))
