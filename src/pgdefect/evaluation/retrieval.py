"""How often the images retrieved for a defect show the same type of defect.

=====================  ====================================================================
precision@k            share of the k nearest that are of the query's defect type
mAP                    mean over queries of average precision: the mean, over all images of
                       the query's type, of the precision at the rank of each
vote                   share of queries whose type is the most frequent one among the
                       `num_voters` nearest; between equally frequent ones the nearest decides
chance                 precision to be expected of k images drawn at random
=====================  ====================================================================

Images of the query's own group (the same part photographed again) are never among the
candidates: they would show the same defect, not the same type of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pgdefect.core.errors import UsageError
from pgdefect.core.types import Float32, num_voters

__all__ = ["QueryFigures", "RetrievalFigures", "cosine_distances", "retrieval_figures"]


@dataclass(frozen=True)
class QueryFigures:
    """What one query retrieved; `index` is its place among the embeddings."""

    index: int
    precision_at_1: float
    precision_at_10: float
    average_precision: float
    vote_is_right: bool
    chance: float


@dataclass(frozen=True)
class RetrievalFigures:
    """Means over queries and over defect types, and every query's own figures.

    Attributes:
        unanswerable: images that no other part shares its defect type with; they are candidates
            and no queries.
    """

    over_queries: dict[str, float]
    over_types: dict[str, float]
    by_type: dict[str, dict[str, float]]
    queries: tuple[QueryFigures, ...]
    unanswerable: int


def cosine_distances(embeddings: Float32) -> NDArray[np.float64]:
    """Between all `(n, dim)`: `(n, n)`; of a zero vector 1."""
    vectors = embeddings.astype(np.float64)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = vectors / np.where(norms == 0.0, 1.0, norms)
    return np.asarray(1.0 - vectors @ vectors.T)


def retrieval_figures(
    distances: NDArray[np.floating], defect_types: Sequence[str], groups: NDArray[np.int64]
) -> RetrievalFigures:
    """Search every image among the others.

    Args:
        distances: `(num_images, num_images)`, from each query to each candidate.
        defect_types: of each image.
        groups: `(num_images,)`, equal for photographs of one part.

    Raises:
        UsageError: where no defect type occurs on two parts.
    """
    types = np.asarray(defect_types)
    found: list[QueryFigures] = []
    for index, row in enumerate(distances):
        candidates = np.flatnonzero(groups != groups[index])
        # Stable, so that images that are equally near rank by their place.
        ranked = candidates[np.argsort(row[candidates], kind="stable")]
        same = types[ranked] == types[index]
        if same.any():
            voters = ranked[: num_voters(len(ranked))]
            found.append(_query_figures(index, same, types[voters].tolist()))
    if not found:
        raise UsageError(
            "no defect type occurs on two parts, so that nothing can be retrieved; the figures "
            "need anomalous images with defect types"
        )
    by_type = {
        name: _mean([q for q in found if types[q.index] == name])
        for name in sorted({str(types[q.index]) for q in found})
    }
    over_types = {
        key: float(np.mean([figures[key] for figures in by_type.values()])) for key in _FIGURES
    }
    return RetrievalFigures(
        _mean(found), over_types, by_type, tuple(found), len(types) - len(found)
    )


_FIGURES = {
    "precision_at_1": "precision_at_1",
    "precision_at_10": "precision_at_10",
    "mean_average_precision": "average_precision",
    "vote_right": "vote_is_right",
    "chance": "chance",
}


def _query_figures(index: int, same: NDArray[np.bool_], nearest: list[str]) -> QueryFigures:
    """same: whether each candidate, nearest first, is of the query's type."""
    hits = np.flatnonzero(same)
    precisions = np.arange(1, len(hits) + 1) / (hits + 1)
    # most_common keeps the order of first occurrence among equals: the nearest decides.
    winner = Counter(nearest).most_common(1)[0][0]
    return QueryFigures(
        index,
        float(same[0]),
        float(same[:10].mean()),
        float(precisions.mean()),
        bool(same[nearest.index(winner)]),
        float(same.mean()),
    )


def _mean(queries: list[QueryFigures]) -> dict[str, float]:
    figures = {
        key: float(np.mean([getattr(query, field) for query in queries]))
        for key, field in _FIGURES.items()
    }
    return {**figures, "queries": float(len(queries))}
