"""When a defect is too far from the known ones to be called by one of their types."""

from __future__ import annotations

import numpy as np
import pytest

from pgdefect.core.likeness import distances_to_own_type, likeness_limit
from pgdefect.core.types import Vote

AXES = np.eye(4, dtype=np.float32)


def near(axis: int, angle: float) -> np.ndarray:
    """A unit vector at an angle from an axis."""
    return np.cos(angle) * AXES[axis] + np.sin(angle) * AXES[(axis + 1) % 4]


def test_each_known_defect_is_compared_with_others_of_its_type_on_other_parts() -> None:
    vectors = np.stack([near(0, 0.0), near(0, 0.1), near(0, 0.3), near(2, 0.0), near(2, 0.5)])
    found = distances_to_own_type(
        ["crack", "crack", "crack", "hole", "hole"], ["a", "a", "b", "c", "d"], vectors
    )
    expected = [1 - np.cos(angle) for angle in (0.3, 0.2, 0.2, 0.5, 0.5)]
    assert found == pytest.approx(expected, abs=1e-6)


def test_a_type_of_one_part_says_nothing() -> None:
    assert distances_to_own_type(["crack", "hole"], ["a", "b"], AXES[:2]) == []
    assert likeness_limit([]) is None
    assert distances_to_own_type([], [], np.empty((0,), dtype=np.float32)) == []


def test_lengths_of_embeddings_do_not_matter() -> None:
    vectors = np.stack([near(0, 0.0), 7 * near(0, 0.3)])
    [one, other] = distances_to_own_type(["crack"] * 2, ["a", "b"], vectors)
    assert one == other == pytest.approx(1 - np.cos(0.3), abs=1e-6)


def test_many_known_defects_give_a_quantile() -> None:
    distances = np.linspace(0.1, 0.5, 39).tolist()
    assert likeness_limit(distances) == pytest.approx(sorted(distances)[37])


@pytest.mark.parametrize(
    ("distances", "limit"),
    [
        ([0.216, 0.216, 0.306, 0.306, 0.422, 0.458], 0.61),
        ([0.2, 0.2], 0.2),
        ([0.1, 0.1, 0.9], 0.95),
        ([1.1, 1.2], 1.2),
    ],
    ids=["of a few", "of two", "halfway to nothing in common", "never below the largest"],
)
def test_few_known_defects_give_more_room(distances: list[float], limit: float) -> None:
    assert likeness_limit(distances) == pytest.approx(limit)


@pytest.mark.parametrize(
    ("distance", "limit", "guess", "words"),
    [
        (0.18, 0.61, "scratch", "scratch 3 of 3"),
        (0.97, 0.61, None, "unlike any known defect"),
        (0.97, None, "scratch", "scratch 3 of 3"),
    ],
)
def test_a_vote_far_from_everything_known_is_no_guess(
    distance: float, limit: float | None, guess: str | None, words: str
) -> None:
    vote = Vote(3, {"scratch": 3}, 3, distance, limit)
    assert (vote.defect_type, str(vote)) == (guess, words)
