"""The published figures, by scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pgdefect.core.errors import MissingExtra, UsageError

__all__ = ["average_precision", "f1_max", "image_auroc", "require"]

Scores = NDArray[np.floating]
Truth = Sequence[bool] | NDArray[np.bool_]
Weights = NDArray[np.floating] | None


def image_auroc(scores: Scores, anomalous: Truth, weights: Weights = None) -> float:
    """Area under the ROC curve of image scores `(n,)`, each counted `weights` times.

    The probability that an anomalous image scores above a normal one, ties counting half
    (the Mann–Whitney statistic). Raises UsageError unless both labels occur.

    Same rule in SQL: defect.image_auroc.
    """
    require("AUROC", "sklearn")
    from sklearn.metrics import roc_auc_score

    values, truth = _checked("AUROC", scores, anomalous)
    return float(roc_auc_score(truth, values, sample_weight=weights))


def average_precision(scores: Scores, anomalous: Truth, weights: Weights = None) -> float:
    """Area under the precision–recall curve of image scores `(n,)`, without interpolation.

    Raises:
        UsageError: unless both labels occur.
    """
    require("average precision", "sklearn")
    from sklearn.metrics import average_precision_score

    values, truth = _checked("average precision", scores, anomalous)
    # The sum of the steps can round to a little more than 1.
    return min(1.0, float(average_precision_score(truth, values, sample_weight=weights)))


def f1_max(scores: Scores, anomalous: Truth, weights: Weights = None) -> tuple[float, float]:
    """The best F1 one threshold reaches over scores `(n,)`, and that threshold.

    Scores above the threshold are taken for anomalous; it lies halfway to the next lower
    score. Raises UsageError unless both labels occur.
    """
    require("F1-max", "sklearn")
    from sklearn.metrics import precision_recall_curve

    values, truth = _checked("F1-max", scores, anomalous)
    precision, recall, accepted = precision_recall_curve(truth, values, sample_weight=weights)
    total = precision + recall
    f1 = np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)[:-1]
    # Of equally good thresholds the strictest: it rejects the fewest normal images.
    best = len(f1) - 1 - int(f1[::-1].argmax())
    lowest = accepted[best]
    lower = values[values < lowest]
    threshold = 0.5 * (lowest + lower.max()) if len(lower) else np.nextafter(lowest, -np.inf)
    return float(f1[best]), float(threshold)


def require(feature: str, module: str) -> None:
    """Raises MissingExtra where a package of the extra ``evaluate`` is not installed."""
    import importlib

    try:
        importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(feature, module, "evaluate") from error


def _checked(
    figure: str, scores: Scores, anomalous: Truth
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    values = np.asarray(scores, dtype=np.float64)
    truth = np.asarray(anomalous, dtype=bool)
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if not positives or not negatives:
        raise UsageError(
            f"{figure} needs normal and anomalous images; there are {negatives} and {positives}"
        )
    return values, truth
