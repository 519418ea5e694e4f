"""Retrieval figures: cases worked by hand, and scikit-learn on random ones."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from pgdefect.core.errors import UsageError
from pgdefect.core.types import num_voters
from pgdefect.evaluation.retrieval import cosine_distances, retrieval_figures


def _on_circle(degrees: list[float]) -> np.ndarray:
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_a_case_worked_by_hand() -> None:
    # Cracks at 0°, 10°, 40°, folds at 20°, 30°; every image a part of its own.
    embeddings = _on_circle([0, 10, 40, 20, 30])
    types = ["crack", "crack", "crack", "fold", "fold"]
    figures = retrieval_figures(cosine_distances(embeddings), types, np.arange(5))
    first = figures.queries[0]  # the others by distance: 10 crack, 20 fold, 30 fold, 40 crack
    assert first.precision_at_1 == 1.0
    assert first.precision_at_10 == 0.5
    assert first.average_precision == pytest.approx((1 / 1 + 2 / 4) / 2)
    assert first.chance == 0.5
    assert not first.vote_is_right  # three of the four are asked, two of them folds
    last = figures.queries[2]  # 30 fold, 20 fold, 10 crack, 0 crack
    assert (last.precision_at_1, last.vote_is_right) == (0.0, False)
    assert last.average_precision == pytest.approx((1 / 3 + 2 / 4) / 2)
    folds = figures.by_type["fold"]
    assert folds["queries"] == 2
    assert folds["chance"] == 0.25
    assert figures.over_types["chance"] == pytest.approx((0.5 + 0.25) / 2)
    assert figures.over_queries["chance"] == pytest.approx((3 * 0.5 + 2 * 0.25) / 5)


def test_the_own_part_is_never_counted() -> None:
    # Each image's nearest is another photograph of its own part.
    distances = cosine_distances(_on_circle([0, 1, 50, 51, 90, 91]))
    types = ["crack", "crack", "fold", "fold", "crack", "crack"]
    apart = retrieval_figures(distances, types, np.array([0, 0, 1, 1, 2, 2]))
    assert apart.over_queries["precision_at_1"] == 0.0
    assert apart.unanswerable == 2
    together = retrieval_figures(distances, types, np.arange(6))
    assert together.over_queries["precision_at_1"] == 1.0


def test_average_precision_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((60, 8)).astype(np.float32)
    types = [["a", "b", "c"][n] for n in rng.integers(3, size=60)]
    groups = rng.integers(20, size=60)
    figures = retrieval_figures(cosine_distances(embeddings), types, groups)
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    for query in figures.queries:
        others = groups != groups[query.index]
        same = np.array(types)[others] == types[query.index]
        expected = average_precision_score(same, (unit @ unit[query.index])[others])
        assert query.average_precision == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("known", "asked"),
    [(0, 3), (1, 3), (9, 3), (10, 4), (16, 4), (17, 5), (81, 9), (82, 10), (999, 10)],
)
def test_of_few_known_defects_only_the_nearest_are_asked(known: int, asked: int) -> None:
    assert num_voters(known) == asked


def test_the_more_frequent_type_does_not_win_by_its_number() -> None:
    # Seven cracks in one place, three folds in another: of all nine others most are cracks.
    embeddings = _on_circle([*range(7), 90, 91, 92])
    figures = retrieval_figures(
        cosine_distances(embeddings), ["crack"] * 7 + ["fold"] * 3, np.arange(10)
    )
    assert figures.over_queries["vote_right"] == 1.0


def test_random_embeddings_are_at_chance() -> None:
    rng = np.random.default_rng(1)
    types = ["a"] * 150 + ["b"] * 50
    embeddings = rng.standard_normal((200, 16)).astype(np.float32)
    figures = retrieval_figures(cosine_distances(embeddings), types, np.arange(200))
    assert figures.over_queries["precision_at_10"] == pytest.approx(
        figures.over_queries["chance"], abs=0.05
    )


def test_types_of_one_part_only_are_refused() -> None:
    with pytest.raises(UsageError, match="two parts"):
        retrieval_figures(np.zeros((2, 2)), ["crack", "fold"], np.arange(2))
