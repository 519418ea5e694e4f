"""Which normal images are outliers, and what a threshold is without them."""

from __future__ import annotations

import numpy as np
import pytest

from pgdefect.core.outliers import MIN_PARTS, find_outliers, suspects, threshold_without
from pgdefect.core.thresholds import false_reject_rate


def scores_of(values: list[float]) -> dict[int, float]:
    return dict(enumerate(values, start=1))


def alone(scores: dict[int, float]) -> dict[int, str]:
    """Every image shows a part of its own."""
    return {image_id: f"part {image_id}" for image_id in scores}


def ordinary(count: int, seed: int = 0) -> list[float]:
    return (0.06 * np.random.default_rng(seed).lognormal(0.0, 0.12, count)).tolist()


@pytest.mark.parametrize("count", [10, 20, 40, 200])
def test_an_image_of_another_product_is_an_outlier_among_few_and_many(count: int) -> None:
    scores = scores_of([*ordinary(count - 1), 0.32])
    assert find_outliers(scores, alone(scores)) == {count}


@pytest.mark.parametrize("share", [20, 40, 100])
def test_one_in_twenty_may_be_outliers(share: int) -> None:
    bad = share // 20
    scores = scores_of([*ordinary(share - bad), *np.linspace(0.2, 0.4, bad).tolist()])
    assert find_outliers(scores, alone(scores)) == set(range(share - bad + 1, share + 1))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("count", [10, 20, 50, 200])
def test_a_heavy_tail_alone_has_no_outliers(seed: int, count: int) -> None:
    """The tail of magnetic tiles: log-normal of 0.2, the highest of 200 near twice the median."""
    values = 0.06 * np.random.default_rng(seed).lognormal(0.0, 0.2, count)
    scores = scores_of(np.minimum(values, 2.02 * np.median(values)).tolist())
    assert find_outliers(scores, alone(scores)) == set()


def test_scores_that_lie_wide_apart_anyway_have_no_outliers() -> None:
    scores = scores_of(np.linspace(0.01, 0.2, 20).tolist())
    assert find_outliers(scores, alone(scores)) == set()


def test_too_few_parts_say_nothing() -> None:
    scores = scores_of([0.05] * (MIN_PARTS - 2) + [5.0])
    assert find_outliers(scores, alone(scores)) == set()


def test_equal_scores_have_no_outliers() -> None:
    scores = scores_of([0.05] * 20)
    assert find_outliers(scores, alone(scores)) == set()


def test_a_part_counts_once_however_often_it_was_photographed() -> None:
    """Twelve photographs of an odd part would be the upper quartile of 40 images."""
    scores = scores_of([*ordinary(28), *[0.3] * 12])
    parts = {n: f"part {n}" if n <= 28 else "odd" for n in scores}
    assert find_outliers(scores, parts) == set(range(29, 41))


def test_only_the_odd_images_of_an_odd_part_are_outliers() -> None:
    scores = scores_of([*ordinary(20), 0.3, 0.06])
    parts = alone(scores) | {22: "part 21"}
    assert find_outliers(scores, parts) == {21}


def test_ignored_images_are_neither_statistics_nor_outliers() -> None:
    scores = scores_of([*ordinary(12), 0.3, *[0.35] * 12])
    ignored = frozenset(range(14, 26))
    assert find_outliers(scores, alone(scores), ignored=ignored) == {13}


def test_a_threshold_without_outliers_is_that_of_the_rest_and_says_so() -> None:
    values = ordinary(19)
    scores = scores_of([*values, 0.32])
    clean = false_reject_rate(values)
    found = threshold_without({20, 99}, scores, 0.05)
    assert (found.value, found.center) == (clean.value, clean.center)
    assert found.rule == {
        **clean.rule,
        "outliers": [20],
        "threshold_with_outliers": 0.32,
    }


def test_a_threshold_without_outliers_among_the_scores_is_the_ordinary_one() -> None:
    scores = scores_of(ordinary(20))
    assert threshold_without({99}, scores, 0.05) == false_reject_rate(list(scores.values()))


def looks(count: int, odd: list[int], seed: int = 0) -> dict[int, np.ndarray]:
    """Mean patch vectors, of which a few are elsewhere, near each other."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(0, 0.05, (count, 8))
    vectors[[n - 1 for n in odd]] += np.eye(8)[0]
    return dict(enumerate(vectors, start=1))


@pytest.mark.parametrize(("count", "odd"), [(40, [3, 17]), (20, [5, 6]), (100, [1, 2, 3, 4, 5])])
def test_images_that_only_look_like_each_other_are_suspects(count: int, odd: list[int]) -> None:
    scores = scores_of(ordinary(count))  # each is near to its like, and scores low
    parts = alone(scores)
    assert {parts[n] for n in odd} <= suspects(scores, scores, looks(count, odd), parts)


def test_the_highest_scores_are_suspects_of_few_parts() -> None:
    scores = scores_of([*ordinary(38), 0.12, 0.13])
    parts = alone(scores)
    found = suspects(scores, scores, looks(40, []), parts)
    assert {parts[39], parts[40]} <= found
    assert len(found) <= 6


def test_too_few_parts_have_no_suspects() -> None:
    scores = scores_of(ordinary(MIN_PARTS - 1))
    assert suspects(scores, scores, looks(MIN_PARTS - 1, [1, 2]), alone(scores)) == set()
