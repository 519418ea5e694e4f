"""Metrics. Scores are raw distances: larger means more anomalous."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pgdefect.errors import UsageError

__all__ = ["image_auroc"]


def image_auroc(scores: NDArray[np.floating], anomalous: Sequence[bool]) -> float:
    """Area under the ROC curve of image scores `(n,)`.

    The probability that an anomalous image scores above a normal one, ties counting half
    (the Mann–Whitney statistic). Raises UsageError unless both labels occur.
    """
    values = np.asarray(scores, dtype=np.float64)
    truth = np.asarray(anomalous, dtype=bool)
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if not positives or not negatives:
        raise UsageError(
            f"AUROC needs normal and anomalous images; there are {negatives} and {positives}"
        )
    normal = np.sort(values[~truth])
    below = np.searchsorted(normal, values[truth], side="left")
    not_above = np.searchsorted(normal, values[truth], side="right")
    return float((below + not_above).sum() / (2.0 * positives * negatives))
