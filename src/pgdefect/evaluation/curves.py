"""The figures from counts of scores, for many resamples at once. Pure NumPy.

Counts are `(..., bins)`, bins in ascending order of score: how many normal and how many
anomalous items (images, or pixels) have a score in that bin. Items of one bin count as
tied. Where a resample has no normal or no anomalous item the figure is NaN.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pgdefect.core.arrays import Float64

Counts = NDArray[np.floating]

__all__ = ["aupro", "auroc", "average_precision", "f1_max_of_counts", "from_above"]


def auroc(normal: Counts, anomalous: Counts) -> Float64:
    """Area under the ROC curve, `(...)`: ties count half (the Mann–Whitney statistic)."""
    below = np.cumsum(normal, axis=-1, dtype=np.float64) - 0.5 * normal
    pairs = normal.sum(axis=-1, dtype=np.float64) * anomalous.sum(axis=-1, dtype=np.float64)
    return _ratio((anomalous * below).sum(axis=-1), pairs)


def average_precision(normal: Counts, anomalous: Counts) -> Float64:
    """Sum over thresholds of precision times gain in recall, `(...)`; no interpolation."""
    hits, alarms = from_above(anomalous), from_above(normal)
    found = hits + alarms
    precision = np.divide(hits, found, out=np.zeros_like(hits), where=found > 0)
    total = hits[..., 0]
    value = np.minimum(_ratio((anomalous * precision).sum(axis=-1), total), 1.0)
    return np.where(alarms[..., 0] > 0, value, np.nan)


def f1_max_of_counts(normal: Counts, anomalous: Counts) -> Float64:
    """The largest F1 = 2 TP / (2 TP + FP + FN) over the lower edges of the bins, `(...)`."""
    hits, alarms = from_above(anomalous), from_above(normal)
    total = hits[..., :1]
    f1 = _ratio(2.0 * hits, hits + alarms + np.where(total > 0, total, np.nan))
    return np.where(alarms[..., 0] > 0, f1.max(axis=-1), np.nan)


def aupro(
    normal: Counts, overlap: Counts, regions: NDArray[np.floating], fpr_limit: float
) -> Float64:
    """Area under the per-region-overlap curve up to `fpr_limit`, divided by it, `(...)`.

    `normal` counts normal pixels; `overlap` sums, over the defects' regions, the fraction of
    a region's pixels that lie in each bin; `regions` `(...)` says how many regions there are.
    The curve is linear between bins, as in Bergmann et al.'s own code.
    """
    rate = _ratio(from_above(normal), normal.sum(axis=-1, keepdims=True, dtype=np.float64))
    share = _ratio(from_above(overlap), np.asarray(regions, dtype=np.float64)[..., None])
    # From the strictest threshold, which finds nothing, to the laxest.
    rate, share = (_with_origin(values[..., ::-1]) for values in (rate, share))
    start, width = rate[..., :-1], np.diff(rate, axis=-1)
    inside = np.clip(fpr_limit - start, 0.0, width)
    part = np.divide(inside, width, out=np.zeros_like(width), where=width > 0)
    height = share[..., :-1] + 0.5 * part * np.diff(share, axis=-1)
    area: Float64 = (inside * height).sum(axis=-1) / fpr_limit
    return area


def from_above(counts: Counts) -> Float64:
    """How many items lie in a bin or above it, `(..., bins)`."""
    return np.cumsum(counts[..., ::-1], axis=-1, dtype=np.float64)[..., ::-1]


def _with_origin(values: Float64) -> Float64:
    return np.concatenate([np.zeros_like(values[..., :1]), values], axis=-1)


def _ratio(numerator: Float64, denominator: Float64) -> Float64:
    shape = np.broadcast_shapes(numerator.shape, denominator.shape)
    whole = np.broadcast_to(denominator, shape)
    result = np.full(shape, np.nan)
    np.divide(numerator, whole, out=result, where=whole > 0)
    return result
