"""How near a defect must be to the known ones to be called by one of their types.

Some known defect is the nearest one even to a black frame. So a guess also asks whether it is as
near as known defects of one type are to one another. Pure NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pgdefect.core.types import Float32

__all__ = ["distances_to_own_type", "likeness_limit"]

SHARE = 0.95
"""Of the known defects, those that are as near to another of their type as the limit."""


def distances_to_own_type(
    types: Sequence[str], parts: Sequence[str], embeddings: Float32
) -> list[float]:
    """Cosine distance of each known defect to the nearest one of its type on another part.

    Args:
        types: The defect type of each, `(n,)`.
        parts: The part that each is on.
        embeddings: Defect embeddings, `(n, embedding_dim)`.

    Returns:
        A distance, 0 to 2, for each that has another of its type.
    """
    found: list[float] = []
    of_type, on_part = np.array(types), np.array(parts)
    for name in sorted(set(types)):
        rows = np.flatnonzero(of_type == name)
        vectors = embeddings[rows].astype(np.float64)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        distances = 1.0 - vectors @ vectors.T
        distances[on_part[rows][:, None] == on_part[rows][None, :]] = math.inf
        found += [float(one) for one in distances.min(axis=1) if math.isfinite(one)]
    return found


def likeness_limit(distances: Sequence[float]) -> float | None:
    """The distance to the nearest known defect beyond which a defect is unlike all of them.

    `SHARE` of new defects of the known types lie within it (split conformal prediction), where
    there are enough to say so, 19; the largest of fewer is widened by its own distance from their
    median, at most halfway to 1, where vectors have nothing in common.

    Args:
        distances: Of each known defect to the nearest one of its type (`distances_to_own_type`).

    Returns:
        A cosine distance, or None where no type has two parts to compare.
    """
    if not distances:
        return None
    ordered = np.sort(np.asarray(distances, dtype=np.float64))
    order = math.ceil((len(ordered) + 1) * SHARE - 1e-9)
    if order <= len(ordered):
        return float(ordered[order - 1])
    largest = float(ordered[-1])
    widened = largest + (largest - float(np.median(ordered)))
    return min(widened, max(largest, 0.5 * (1.0 + largest)))
