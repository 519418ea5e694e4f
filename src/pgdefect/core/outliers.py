"""Normal images that score far outside the rest of their kind, and thresholds that withstand them.

One wrong image among the normal ones (another product, a part with a defect) scores several
times what the others do. A quantile of all scores follows it, and every defect passes below. So
the default threshold is chosen from the scores without the outliers, and its rule names them.

Pure NumPy: scores by image in, image ids out.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence, Set
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pgdefect.core.thresholds import false_reject_rate
from pgdefect.core.types import Threshold

__all__ = [
    "HIDDEN",
    "IMAGE_SCORE",
    "MEAN_PATCH_SCORE",
    "MIN_PARTS",
    "Limit",
    "find_outliers",
    "suspects",
    "threshold_without",
]

MIN_PARTS = 8
"""With fewer parts nobody can say what is usual, and no image is an outlier."""


class Limit(NamedTuple):
    """What an outlier exceeds: a multiple of the median, and so many spreads above it.

    A spread is the distance from the median to the upper quartile. The ratio is that of up to 40
    parts; the highest of more parts is higher, and `PER_DOUBLING` is added for each doubling.
    """

    ratio: float
    spreads: float


IMAGE_SCORE, MEAN_PATCH_SCORE = Limit(2.6, 4.0), Limit(2.3, 6.0)
PER_DOUBLING = 0.2
"""A defect shows in an image's worst patches, another product in all of them.

Of 20, 40 and 100 normal images of magnetic tiles, board crops, ball screws and solar cells the
highest image score was 1.2 to 2.4 times the median, the highest mean patch score 1.1 to 2.2 times.
One image of another of these products among them had 1.5 to 5.4 and 2.3 to 7.4 times."""

HIDDEN = 1.5
"""An image that was hidden by another like it scores this many times as much without that one."""
ODD_SHARE = 0.05
"""The share of parts that may be odd and alike."""


def threshold_without(
    outliers: Set[int],
    scores: Mapping[int, float],
    rate: float,
    parts: Mapping[int, Hashable] | None = None,
) -> Threshold:
    """The threshold of `false_reject_rate` from the scores that are no outliers.

    Its promise is about images of the kind that is left: what resembles an outlier is rejected
    more often, unless the bank has learned it.

    Same rule in SQL: defect.threshold_for.

    Args:
        outliers: Ids of images to leave out; others than those of `scores` do not matter.
        scores: Raw score by image id.
        rate: Share of normal images the threshold may reject.
        parts: The part that each image shows; None takes every image for a part of its own.

    Returns:
        The threshold. Where something was left out its rule has ``outliers``, their ids, and
        ``threshold_with_outliers``, what it would be with them.

    Raises:
        UsageError: nothing is left, or the rate does not lie between 0 and 1.
    """

    def choose(image_ids: list[int]) -> Threshold:
        names = None if parts is None else [parts[image_id] for image_id in image_ids]
        return false_reject_rate([scores[image_id] for image_id in image_ids], rate, names)

    threshold = choose([image_id for image_id in scores if image_id not in outliers])
    left_out = sorted(outliers & scores.keys())
    if not left_out:
        return threshold
    rule = {
        **threshold.rule,
        "outliers": left_out,
        "threshold_with_outliers": choose(list(scores)).value,
    }
    return Threshold(threshold.value, threshold.center, rule)


def find_outliers(
    scores: Mapping[int, float],
    parts: Mapping[int, Hashable],
    *,
    limit: Limit = IMAGE_SCORE,
    ignored: Set[int] = frozenset(),
) -> frozenset[int]:
    """Images that score far outside the rest, by statistics of one value a part.

    Args:
        scores: Raw score by image id.
        parts: The part that each image shows; of a part's images the highest score counts.
        limit: What an outlier exceeds; `MEAN_PATCH_SCORE` where the scores are means.
        ignored: Ids of images that are no part of the statistics.

    Returns:
        Ids of the outliers; none with fewer than `MIN_PARTS` parts.
    """
    highest: dict[Hashable, float] = {}
    for image_id, score in scores.items():
        if image_id not in ignored:
            part = parts[image_id]
            highest[part] = max(score, highest.get(part, -math.inf))
    if len(highest) < MIN_PARTS:
        return frozenset()
    highest_usual = _highest_usual(list(highest.values()), limit)
    return frozenset(
        image_id
        for image_id, score in scores.items()
        if image_id not in ignored and score > highest_usual
    )


def suspects(
    scores: Mapping[int, float],
    means: Mapping[int, float],
    looks: Mapping[int, npt.NDArray[np.floating]],
    parts: Mapping[int, Hashable],
) -> frozenset[Hashable]:
    """Parts that could be odd and hide each other, since a bank without the one has the other.

    Args:
        scores: Raw score by image id.
        means: Mean patch score by image id.
        looks: Mean patch vector by image id, `(dim,)`.
        parts: The part that each image shows, of the images to look at.

    Returns:
        The few parts with the highest scores of either kind, and with the fewest others that look
        like them; none with fewer than `MIN_PARTS` parts.
    """
    of_part: dict[Hashable, int] = {}
    for image_id, part in parts.items():
        if part not in of_part or scores[image_id] > scores[of_part[part]]:
            of_part[part] = image_id
    if len(of_part) < MIN_PARTS:
        return frozenset()
    number = max(2, math.ceil(ODD_SHARE * len(of_part)))
    ids = list(of_part.values())
    vectors = np.stack([looks[image_id] for image_id in ids]).astype(np.float64)
    squares = (vectors**2).sum(axis=1)
    distances = squares[:, None] + squares[None] - 2 * vectors @ vectors.T
    alone = np.partition(distances, number, axis=1)[:, number]
    chosen = {
        ids[n]
        for values in ([scores[i] for i in ids], [means[i] for i in ids], alone)
        for n in np.argsort(values)[-number:]
    }
    return frozenset(parts[image_id] for image_id in chosen)


def _highest_usual(values: Sequence[float], limit: Limit) -> float:
    """The highest score of a part, among `values` of one for each part, that is no outlier's.

    Scores of normal parts have a heavy upper tail, whose length says little about what is right:
    the rarest of 40 magnetic tiles scored 2.0 times the median, while a quarter of the way up the
    others lay within 1.1. So both are asked for, a multiple of the median and spreads above it.
    """
    median, upper = np.quantile(np.asarray(values, dtype=np.float64), [0.5, 0.75])
    ratio = limit.ratio + PER_DOUBLING * max(0.0, math.log2(len(values) / 40))
    return float(max(ratio * median, median + limit.spreads * (upper - median)))
