"""AUROC against scikit-learn and cases worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from pgdefect.errors import UsageError
from pgdefect.evaluation import image_auroc


@pytest.mark.parametrize(
    ("normal", "anomalous", "expected"),
    [
        ([1, 2], [3, 4], 1.0),
        ([3, 4], [1, 2], 0.0),
        ([1, 3], [2, 4], 0.75),
        ([1, 1], [1, 1], 0.5),
        ([1, 2], [2, 3], 0.875),
    ],
)
def test_cases_worked_by_hand(normal: list[int], anomalous: list[int], expected: float) -> None:
    scores = np.array([*normal, *anomalous], dtype=np.float64)
    truth = [False] * len(normal) + [True] * len(anomalous)
    assert image_auroc(scores, truth) == expected


@given(
    st.lists(
        st.tuples(st.integers(0, 5).map(float) | st.floats(0, 1e6), st.booleans()), min_size=2
    ).filter(lambda items: len({label for _, label in items}) == 2)
)
def test_equals_scikit_learn_ties_included(items: list[tuple[float, bool]]) -> None:
    scores = np.array([score for score, _ in items])
    truth = [label for _, label in items]
    assert image_auroc(scores, truth) == pytest.approx(roc_auc_score(truth, scores))


def test_single_precision_scores_do() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 50, 3000).astype(np.float32) / 7
    truth = rng.random(3000) < 0.3
    assert image_auroc(scores, truth.tolist()) == pytest.approx(roc_auc_score(truth, scores))


@pytest.mark.parametrize(("truth", "counts"), [([True] * 3, "0 and 3"), ([False] * 3, "3 and 0")])
def test_one_label_alone_is_refused(truth: list[bool], counts: str) -> None:
    with pytest.raises(UsageError, match=f"needs normal and anomalous images; there are {counts}"):
        image_auroc(np.arange(3.0), truth)
