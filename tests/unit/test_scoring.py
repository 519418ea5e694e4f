"""Scores: nearest vectors, PatchCore's weight, the shared scale."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgdefect.core import distance
from pgdefect.core.distance import (
    COSINE,
    L2,
    METRICS,
    Metric,
    as_stored,
    nearest_vectors,
    pairwise,
    row_distances,
)
from pgdefect.vision.patchcore.scoring import normalized_score, reweighted

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
    monkeypatch.setattr(distance, "_QUERY_BLOCK", 7)
    monkeypatch.setattr(distance, "_BANK_BLOCK", 11)
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


# -- normalized score ----------------------------------------------------------------------


def test_normalized_score_of_the_points_it_is_anchored_at() -> None:
    for threshold, center in ((2.0, 1.0), (0.003, 0.001), (700.0, -3.0)):
        assert normalized_score(threshold, threshold, center) == 0.5
        assert normalized_score(center, threshold, center) == pytest.approx(0.25)
        beyond = 2 * threshold - center
        assert normalized_score(beyond, threshold, center) == pytest.approx(0.75)


raw_scores = st.floats(0, 1e6, width=32)
units = st.floats(1e-3, 1.0)


@st.composite
def scales(draw: st.DrawFn) -> tuple[float, float]:
    """A threshold and a center; the unit is no less than a thousandth of the threshold."""
    threshold = draw(st.floats(1e-3, 1e3))
    return threshold, threshold - draw(units) * threshold


@given(scale=scales(), low=raw_scores, high=raw_scores)
def test_normalized_score_rises_wherever_single_precision_can_tell(
    scale: tuple[float, float], low: float, high: float
) -> None:
    """Strictly, up to a million thresholds; anomalib clamps to 1 and loses the ranking."""
    threshold, center = scale
    low, high = min(low, high), max(low, high)
    low, high = float(np.float32(low * threshold)), float(np.float32(high * threshold))
    scores = [normalized_score(raw, threshold, center) for raw in (low, high)]
    assert 0.0 < scores[0] <= scores[1] < 1.0
    # Seven digits are what a raw score has; near the threshold rounding needs room, too.
    if high - low > max(1e-6 * high, 1e-12 * threshold):
        assert scores[0] < scores[1]


@pytest.mark.parametrize("unit", [1.0, 0.2, 0.01])
def test_neighboring_single_precision_scores_keep_their_order(unit: float) -> None:
    """Every score is a float32; the next larger one must rank higher, up to 1e6 thresholds."""
    for threshold in (0.0947, 3.0, 812.0):
        for times in np.geomspace(1e-6, 1e6, 200):
            raw = np.float32(times * threshold)
            if unit == 0.01 and times > 1e5:
                continue
            above = float(np.nextafter(raw, np.float32(np.inf)))
            center = threshold * (1 - unit)
            assert normalized_score(float(raw), threshold, center) < normalized_score(
                above, threshold, center
            )


@given(
    threshold=st.floats(-1e12, 1e12),
    unit=st.floats(1e-12, 1e12),
    raws=st.lists(st.floats(-1e300, 1e300), min_size=2, max_size=2).map(sorted),
)
def test_normalized_score_never_falls_whatever_the_numbers(
    threshold: float, unit: float, raws: list[float]
) -> None:
    center = threshold - unit
    if not center < threshold:
        return
    low, high = (normalized_score(raw, threshold, center) for raw in raws)
    assert 0.0 <= low <= high < 1.0
    assert normalized_score(threshold, threshold, center) == 0.5
    assert normalized_score(center, threshold, center) == pytest.approx(0.25)
    above = math.nextafter(threshold, math.inf)
    assert normalized_score(above, threshold, center) >= 0.5
    assert normalized_score(math.nextafter(threshold, -math.inf), threshold, center) <= 0.5


@given(scale=scales(), raw=raw_scores, factor=st.floats(1e-3, 1e3), shift=st.floats(-10, 10))
def test_normalized_score_is_comparable_across_categories(
    scale: tuple[float, float], raw: float, factor: float, shift: float
) -> None:
    """Where another detector's scores are this one's in other units, both read the same."""
    threshold, center = scale
    raw = raw * threshold
    one = normalized_score(raw, threshold, center)
    other = normalized_score(
        factor * (raw + shift), factor * (threshold + shift), factor * (center + shift)
    )
    assert other == pytest.approx(one, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("raw", [1e3, 1e9, 1e300])
@pytest.mark.parametrize("unit", [0.4, 1e-9])
def test_normalized_score_stays_between_zero_and_one(raw: float, unit: float) -> None:
    assert 0.99 < normalized_score(raw, 0.5, 0.5 - unit) < 1.0
    assert 0.0 <= normalized_score(-raw, 0.5, 0.5 - unit) < 0.01
