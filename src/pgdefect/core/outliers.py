"""Normal images that score far outside the rest of their kind, and thresholds that withstand them.

One wrong image among the normal ones (another product, a part with a defect) scores several
times what the others do. A quantile of all scores follows it, and every defect passes below. So
the default threshold is chosen from the scores without the outliers, and its rule names them.

Pure NumPy: scores by image in, image ids out.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Set

import numpy as np

from pgdefect.core.thresholds import false_reject_rate
from pgdefect.core.types import Threshold

__all__ = ["MIN_PARTS", "find_outliers", "threshold_without"]

MIN_PARTS = 8
"""With fewer parts nobody can say what is usual, and no image is an outlier."""


def threshold_without(
    outliers: Set[int], scores: Mapping[int, float], rate: float
) -> Threshold:
    """The threshold of `false_reject_rate` from the scores that are no outliers.

    Its promise is about images of the kind that is left: what resembles an outlier is rejected
    more often, unless the bank has learned it.

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
