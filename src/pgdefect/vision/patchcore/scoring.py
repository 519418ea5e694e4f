"""From patch distances to scores: image score, normalized score. Pure NumPy."""

from __future__ import annotations

import math

import numpy as np

from pgdefect.core.distance import Metric
from pgdefect.core.types import Float32

__all__ = [
    "normalized_score",
    "reweighted",
]


def reweighted(score: float, support_distances: Float32, metric: Metric) -> float:
    """PatchCore's image score, equation 7 (Roth et al., arXiv 2106.08265).

    Same rule in SQL: defect.inspect.

    Args:
        score: the worst patch's distance; support_distances `(num_neighbors,)`: distances of that
            patch to the nearest bank vectors of its nearest bank vector m*, m* first. The softmax
            is over Euclidean distances; a cosine distance d of unit vectors is √(2d). With a
            single neighbor the weight is 1.
    """
    if len(support_distances) <= 1:
        return score
    lengths = metric.length(support_distances.astype(np.float64))
    weights = np.exp(lengths - lengths.max())
    return float(score * (1.0 - weights[0] / weights.sum()))


def normalized_score(raw: float, threshold: float, center: float) -> float:
    """Raw score on a scale shared by all detectors: 0.25 at the center, 0.5 at the threshold.

    With the unit threshold - center and the excess e over the threshold in such units it is
    1 - 1 / (2 + 2e) above and 1 / (2 - 2e) below: rising everywhere, in floating point too, and
    never reaching 1. Scores as single precision tells them apart keep their ranking up to
    a million units.

    Same rule in SQL: pgdefect.normalized_score.
    """
    unit = threshold - center
    excess = raw - threshold
    tail = 0.5 * unit / (unit + abs(excess))
    return tail if excess < 0.0 else min(1.0 - tail, math.nextafter(1.0, 0.0))
