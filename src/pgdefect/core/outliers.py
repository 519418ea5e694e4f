"""Normal images that score far outside the rest of their kind, and thresholds that withstand them.

One wrong image among the normal ones (another product, a part with a defect) scores several
times what the others do. A quantile of all scores follows it, and every defect passes below. So
the default threshold is chosen from the scores without the outliers, and its rule names them.

Pure NumPy: scores by image in, image ids out.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence, Set

import numpy as np

from pgdefect.core.thresholds import false_reject_rate
from pgdefect.core.types import Threshold

__all__ = ["MIN_PARTS", "TYPICAL_RATIO", "find_outliers", "threshold_without"]

MIN_PARTS = 8
"""With fewer parts nobody can say what is usual, and no image is an outlier."""
SCORE_RATIO, TYPICAL_RATIO = 2.2, 1.6
"""Times the median that an outlier's image score, or its typical patch score, exceeds. Of normal
magnetic tiles, board crops, ball screws and solar cells (20 to 100 of each) none reached 2.05 and
1.3; of images of another of these products all had 2.2 or more of the one or the other."""
MIN_SPREADS = 4.0


def threshold_without(outliers: Set[int], scores: Mapping[int, float], rate: float) -> Threshold:
    """The threshold of `false_reject_rate` from the scores that are no outliers.

    Its promise is about images of the kind that is left: what resembles an outlier is rejected
    more often, unless the bank has learned it.

    Same rule in SQL: defect.threshold_for.

    Args:
        outliers: Ids of images to leave out; others than those of `scores` do not matter.
        scores: Raw score by image id.
        rate: Share of normal images the threshold may reject.

    Returns:
        The threshold. Where something was left out its rule has ``outliers``, their ids, and
        ``threshold_with_outliers``, what it would be with them.

    Raises:
        UsageError: nothing is left, or the rate does not lie between 0 and 1.
    """
    rest = [score for image_id, score in scores.items() if image_id not in outliers]
    threshold = false_reject_rate(rest, rate)
    left_out = sorted(outliers & scores.keys())
    if not left_out:
        return threshold
    all_scores = false_reject_rate(list(scores.values()), rate)
    rule = {
        **threshold.rule,
        "outliers": left_out,
        "threshold_with_outliers": all_scores.value,
    }
    return Threshold(threshold.value, threshold.center, rule)


def find_outliers(
    scores: Mapping[int, float],
    parts: Mapping[int, Hashable],
    *,
    min_ratio: float = SCORE_RATIO,
    ignored: Set[int] = frozenset(),
) -> frozenset[int]:
    """Images that score far outside the rest, by statistics of one value a part.

    Args:
        scores: Raw score by image id.
        parts: The part that each image shows; of a part's images the highest score counts.
        min_ratio: Times the median that an outlier scores; `TYPICAL_RATIO` for typical patch
            scores, which lie closer together than image scores.
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
    limit = outlier_limit(list(highest.values()), min_ratio)
    return frozenset(
        image_id for image_id, score in scores.items() if image_id not in ignored and score > limit
    )


def outlier_limit(values: Sequence[float], min_ratio: float) -> float:
    """The score above which a part is an outlier among `values`, one for each part.

    Scores of normal parts have a heavy upper tail, whose length says little about what is right:
    the rarest of 40 magnetic tiles scored 2.0 times the median, while a quarter of the way up the
    others lay within 1.1. So both are asked for: `min_ratio` times the median, and `MIN_SPREADS`
    times the distance from the median to the upper quartile above it.
    """
    median, upper = np.quantile(np.asarray(values, dtype=np.float64), [0.5, 0.75])
    return float(max(min_ratio * median, median + MIN_SPREADS * (upper - median)))
