"""Confidence intervals: the percentile bootstrap over groups (Efron & Tibshirani, 1993).

Photographs of one part say nearly the same thing, so whole groups are drawn, not images:
an interval over images would be too narrow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from pgdefect.core.arrays import Float64
from pgdefect.evaluation import curves
from pgdefect.evaluation.pixels import FPR_LIMIT, PixelCounts

__all__ = [
    "group_numbers",
    "image_replicates",
    "percentile_interval",
    "pixel_replicates",
    "resampled_weights",
]

CONFIDENCE = 0.95
_CHUNK = 50


def group_numbers(groups: Sequence[str | None]) -> NDArray[np.int64]:
    """A number per group, `(images,)`; an image without one is a group of its own."""
    known: dict[object, int] = {}
    return np.array(
        [known.setdefault(group or ("alone", n), len(known)) for n, group in enumerate(groups)],
        dtype=np.int64,
    )


def resampled_weights(groups: NDArray[np.int64], resamples: int, seed: int) -> Iterator[Float64]:
    """How often each image is in each resample, `(up to 50 resamples, images)` at a time.

    As many groups are drawn as there are, with replacement. One seed and one grouping give
    the same resamples again.
    """
    rng = np.random.default_rng(seed)
    count = int(groups.max()) + 1
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        drawn = rng.multinomial(count, np.full(count, 1.0 / count), size=size)
        yield drawn[:, groups].astype(np.float64)


def image_replicates(
    scores: NDArray[np.floating],
    anomalous: NDArray[np.bool_],
    threshold: float,
    groups: NDArray[np.int64],
    resamples: int,
    seed: int,
) -> dict[str, Float64]:
    """The image figures of every resample, `(resamples,)` each; NaN where one label is absent."""
    order = np.argsort(scores, kind="stable")
    ordered = np.asarray(scores, dtype=np.float64)[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    truth = anomalous[order]
    rejected = ordered > threshold
    parts: list[dict[str, Float64]] = []
    for weights in resampled_weights(groups, resamples, seed):
        drawn = weights[:, order]
        normal, defective = drawn * ~truth, drawn * truth
        tied = [np.add.reduceat(counts, starts, axis=1) for counts in (normal, defective)]
        parts.append(
            {
                "image_auroc": curves.auroc(*tied),
                "image_f1_max": curves.f1_max_of_counts(*tied),
                "average_precision": curves.average_precision(*tied),
                "detection_rate": _share(defective, rejected),
                "false_reject_rate": _share(normal, rejected),
            }
        )
    return _joined(parts)


def pixel_replicates(
    counts: PixelCounts, groups: NDArray[np.int64], resamples: int, seed: int
) -> dict[str, Float64]:
    """The pixel figures of every resample, `(resamples,)` each."""
    sums = counts.summed(groups)
    regions = np.bincount(groups, weights=counts.regions)
    first = np.unique(groups, return_index=True)[1]
    parts: list[dict[str, Float64]] = []
    for weights in resampled_weights(groups, resamples, seed):
        drawn = weights[:, first]
        normal, defective, overlap = (drawn.astype(np.float32) @ rows for rows in sums)
        parts.append(
            {
                "pixel_auroc": curves.auroc(normal, defective),
                "pixel_f1_max": curves.f1_max_of_counts(normal, defective),
                "aupro": curves.aupro(normal, overlap, drawn @ regions, FPR_LIMIT),
            }
        )
    return _joined(parts)


def percentile_interval(
    replicates: Float64, confidence: float = CONFIDENCE
) -> tuple[float, float] | None:
    """The middle `confidence` of the replicates `(resamples,)`, NaN left out; None without any."""
    usable = replicates[~np.isnan(replicates)]
    if not len(usable):
        return None
    tail = 0.5 * (1.0 - confidence)
    low, high = np.quantile(usable, [tail, 1.0 - tail])
    return float(low), float(high)


def _share(weights: Float64, rejected: NDArray[np.bool_]) -> Float64:
    total = weights.sum(axis=1)
    result = np.full(len(total), np.nan)
    np.divide(weights @ rejected, total, out=result, where=total > 0)
    return result


def _joined(parts: Sequence[dict[str, Float64]]) -> dict[str, Float64]:
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]} if parts else {}
