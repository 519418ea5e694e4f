"""The limit between copies of a photograph and other photographs."""

from __future__ import annotations

import math

import pytest

from pgdefect.usecases.common.duplicate_limit import duplicate_limit


def test_the_limit_lies_between_copies_and_other_photographs() -> None:
    copies = {"lossless": [0.0] * 20, "jpeg_90": [0.001] * 20}
    found = duplicate_limit(copies, [0.1] * 20)
    assert found.limit == pytest.approx(math.sqrt(0.001 * 0.1))
    assert found.found == {"lossless": 1.0, "jpeg_90": 1.0}
    assert (found.mistaken, found.num_images) == (0.0, 20)


def test_copies_farther_than_other_photographs_are_given_up_and_that_is_said() -> None:
    """As JPEG of quality 90 lies 0.0075 from itself, and different parts 0.002 apart."""
    copies = {"lossless": [1e-7] * 20, "jpeg_90": [0.007, 0.008] * 10, "resized": [0.0005] * 20}
    found = duplicate_limit(copies, [0.002] * 20)
    assert found.limit == pytest.approx(math.sqrt(0.0005 * 0.002))
    assert found.found == {"lossless": 1.0, "jpeg_90": 0.0, "resized": 1.0}
    assert found.copies["jpeg_90"] == pytest.approx(0.008)


def test_a_photograph_that_is_there_twice_moves_the_limit_little() -> None:
    found = duplicate_limit({"lossless": [0.0] * 24}, [0.0] + [0.01] * 23)
    assert found.limit == pytest.approx(math.sqrt(1e-6 * 0.01))
    assert found.mistaken == pytest.approx(1 / 24)


def test_where_all_photographs_are_alike_nothing_is_told_apart() -> None:
    found = duplicate_limit({"lossless": [0.0] * 5}, [0.0] * 5)
    assert (found.limit, found.found, found.mistaken) == (0.0, {"lossless": 0.0}, 0.0)
