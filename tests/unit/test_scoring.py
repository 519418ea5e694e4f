"""Scores: nearest vectors, PatchCore's weight, the threshold's promise, the shared scale."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pgdefect.distance import COSINE, L2, METRICS, Metric, as_stored, pairwise
from pgdefect.errors import UsageError
from pgdefect.vision import scoring
from pgdefect.vision.scoring import (
    nearest_vectors,
    normalized_score,
    reweighted,
    row_distances,
    threshold_for_false_rejects,
)

each_metric = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS.keys())


def vectors(seed: int, count: int, metric: Metric, dim: int = 10) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((count, dim))
    if metric is COSINE:
        values /= np.linalg.norm(values, axis=1, keepdims=True)
    return values.astype(np.float32)


# -- nearest -------------------------------------------------------------------------------


@each_metric
@pytest.mark.parametrize(("queries", "bank"), [(1, 1), (5, 300), (700, 2500), (256, 1024), (0, 3)])
def test_nearest_vectors_are_those_of_all_pairs(metric: Metric, queries: int, bank: int) -> None:
    asked, held = vectors(0, queries, metric), vectors(1, bank, metric)
    positions, distances = nearest_vectors(asked, held, metric)
    reference = pairwise(metric, asked, held)
    assert positions.dtype == np.int32
    assert positions.shape == distances.shape == (queries,)
    if queries:
        np.testing.assert_array_equal(positions, reference.argmin(axis=1))
        np.testing.assert_allclose(distances, reference.min(axis=1), rtol=1e-5, atol=1e-7)


@each_metric
def test_blocks_change_nothing(metric: Metric, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, held = vectors(0, 50, metric), vectors(1, 90, metric)
    whole = nearest_vectors(asked, held, metric)
    monkeypatch.setattr(scoring, "_QUERY_BLOCK", 7)
    monkeypatch.setattr(scoring, "_BANK_BLOCK", 11)
    pieces = nearest_vectors(asked, held, metric)
    np.testing.assert_array_equal(whole[0], pieces[0])
    np.testing.assert_array_equal(whole[1], pieces[1])


@each_metric
def test_lengths_that_half_precision_rounded_mislead_nobody(metric: Metric) -> None:
    """Vectors so near each other that a length off by 1e-4 weighs more than the angle."""
    near = vectors(0, 1, COSINE) + np.float32(0.01) * vectors(1, 1500, L2)
    near /= np.linalg.norm(near, axis=1, keepdims=True)
    held, asked = as_stored(near[:1000], "half"), as_stored(near[1000:], "half")
    _, distances = nearest_vectors(asked, held, metric)
    reference = pairwise(metric, asked, held).min(axis=1)
    np.testing.assert_allclose(distances, reference, rtol=1e-3, atol=2e-7)


@each_metric
def test_a_vector_of_the_bank_is_nearest_to_itself_at_zero(metric: Metric) -> None:
    held = vectors(1, 500, metric)
    positions, distances = nearest_vectors(held, held, metric)
    np.testing.assert_array_equal(positions, np.arange(500))
    np.testing.assert_array_equal(distances, 0)


def test_distances_keep_their_digits_near_zero() -> None:
    """1 - cos would lose them all: the vectors differ by 1e-5."""
    a = np.array([[1.0, 0.0]], dtype=np.float32)
    b = np.array([[1.0, 1e-5]], dtype=np.float32)
    assert row_distances(a, b, COSINE)[0] == pytest.approx(0.5e-10, rel=1e-3)
    assert row_distances(a, b, L2)[0] == pytest.approx(1e-5, rel=1e-6)
    assert row_distances(3 * a, 7 * b, COSINE)[0] == pytest.approx(0.5e-10, rel=1e-3)


# -- PatchCore's weight --------------------------------------------------------------------


def test_weight_of_a_case_worked_by_hand() -> None:
    """Equation 7 with distances 1, 2, 3: w = 1 - e¹ / (e¹ + e² + e³)."""
    weight = 1 - math.e / (math.e + math.e**2 + math.e**3)
    support = np.array([1, 2, 3], dtype=np.float32)
    assert reweighted(1.0, support, L2) == pytest.approx(weight)
    assert reweighted(10.0, support, L2) == pytest.approx(10 * weight)
    # Equal distances share: with b of them, w = 1 - 1/b.
    for count in (2, 3, 9):
        even = np.full(count, 0.7, dtype=np.float32)
        assert reweighted(0.7, even, L2) == pytest.approx(0.7 * (1 - 1 / count))


def test_weight_under_cosine_is_that_of_the_euclidean_distances() -> None:
    """A cosine distance d of unit vectors is a Euclidean one of √2d."""
    query, *support = vectors(2, 4, COSINE)
    held = np.stack(support)
    asked = np.broadcast_to(query, held.shape)
    cosine, euclidean = row_distances(asked, held, COSINE), row_distances(asked, held, L2)
    assert reweighted(5.0, cosine, COSINE) == pytest.approx(reweighted(5.0, euclidean, L2))


@each_metric
def test_one_neighbor_leaves_the_score(metric: Metric) -> None:
    assert reweighted(0.3, np.array([0.3], dtype=np.float32), metric) == 0.3
    assert reweighted(0.3, np.empty(0, dtype=np.float32), metric) == 0.3


def test_weight_of_huge_distances_does_not_overflow() -> None:
    assert reweighted(2.0, np.array([1e4, 2e4, 3e4], dtype=np.float32), L2) == pytest.approx(2.0)
    assert reweighted(2.0, np.array([3e4, 2e4, 1e4], dtype=np.float32), L2) == pytest.approx(0.0)


# -- threshold -----------------------------------------------------------------------------


@pytest.mark.parametrize(("held_out", "rate"), [(19, 0.05), (39, 0.05), (20, 0.1), (99, 0.01)])
def test_new_normal_images_are_rejected_at_most_at_the_rate(held_out: int, rate: float) -> None:
    """The promise over many trainings: P(new score > threshold) <= rate, and not far below."""
    rng = np.random.default_rng(0)
    trials = 20_000
    scores = rng.gamma(3.0, size=(trials, held_out + 1))
    rejected = np.mean(
        [row[-1] > threshold_for_false_rejects(row[:-1], rate).value for row in scores]
    )
    noise = 4 * math.sqrt(rate / trials)
    assert rejected <= rate + noise
    assert rejected >= rate - 1 / (held_out + 1) - noise


def test_threshold_of_cases_worked_by_hand() -> None:
    scores = np.arange(1.0, 20.0)
    threshold = threshold_for_false_rejects(scores[::-1], 0.05)
    assert (threshold.value, threshold.center) == (19.0, 10.0)
    assert threshold.rule == {
        "rule": "false_reject_rate",
        "rate": 0.05,
        "held_out_images": 19,
        "guaranteed": True,
    }
    assert threshold_for_false_rejects(scores, 0.25).value == 15.0
    # 18 are too few to promise 5 %: the largest, and no promise.
    few = threshold_for_false_rejects(scores[:18], 0.05)
    assert few.value == 18.0
    assert few.rule["guaranteed"] is False


@pytest.mark.parametrize("scores", [[0.2], [0.2] * 9, [0.0], [0.0, 0.0], [1e20] * 3])
def test_equal_scores_leave_a_threshold_above_them(scores: list[float]) -> None:
    threshold = threshold_for_false_rejects(np.array(scores))
    assert threshold.value > threshold.center == scores[0]
    assert threshold.value == pytest.approx(scores[0], rel=1e-5, abs=1e-8)
    assert normalized_score(scores[0], threshold.value, threshold.center) == pytest.approx(0.25)


def test_threshold_refuses_what_it_cannot_use() -> None:
    for rate in (0.0, 1.0, -0.1, 1.5, math.nan):
        with pytest.raises(UsageError, match="between 0 and 1"):
            threshold_for_false_rejects(np.ones(5), rate)
    with pytest.raises(UsageError, match="there are none"):
        threshold_for_false_rejects(np.empty(0))


# -- normalized score ----------------------------------------------------------------------


def test_normalized_score_of_the_points_it_is_anchored_at() -> None:
    for threshold, center in ((2.0, 1.0), (0.003, 0.001), (700.0, -3.0)):
        assert normalized_score(threshold, threshold, center) == 0.5
        assert normalized_score(center, threshold, center) == pytest.approx(0.25)
        beyond = 2 * threshold - center
        assert normalized_score(beyond, threshold, center) == pytest.approx(0.75)


def test_normalized_score_keeps_the_ranking() -> None:
    raw = np.concatenate([np.linspace(0, 10, 1001), np.geomspace(10.1, 1e6, 200)])
    scores = [normalized_score(float(value), 0.5, 0.1) for value in raw]
    assert (np.diff(scores) > 0).all()
    assert 0 < scores[0] < scores[-1] < 1


@pytest.mark.parametrize("raw", [1e3, 1e9, 1e300])
@pytest.mark.parametrize("unit", [0.4, 1e-9])
def test_normalized_score_stays_between_zero_and_one(raw: float, unit: float) -> None:
    assert 0.99 < normalized_score(raw, 0.5, 0.5 - unit) < 1.0
    assert 0.0 <= normalized_score(-raw, 0.5, 0.5 - unit) < 0.01
