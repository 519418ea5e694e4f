"""Anomalous regions of a map, and the cells that a box of the photograph holds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from pgdefect.vision.defects.region import (
    MAX_REGIONS,
    anomalous_regions,
    connected_regions,
    region_box,
    worst_region,
)
from pgdefect.vision.images.preprocess import Preprocessing

PREPROCESSING = Preprocessing(
    image_size=(64, 64), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), resize="stretch"
)


@given(seed=st.integers(0, 10_000), threshold=st.floats(0.3, 0.95))
def test_regions_are_the_connected_components(seed: int, threshold: float) -> None:
    scores = np.random.default_rng(seed).random((9, 13))
    labels, count = ndimage.label(scores > threshold, structure=np.ones((3, 3)))
    regions = anomalous_regions(scores, threshold)
    if count == 0:
        [alone] = regions
        assert alone.sum() == 1
        assert scores[alone] == scores.max()
        return
    assert len(regions) == min(count, MAX_REGIONS)
    peaks = [scores[region].max() for region in regions]
    assert peaks == sorted(peaks, reverse=True)
    for region in regions:
        [label] = np.unique(labels[region])
        assert (region == (labels == label)).all()


SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 12))


@given(shape=SHAPES, seed=st.integers(0, 10_000), share=st.floats(0, 1))
def test_cells_are_connected_as_scipy_says(shape: tuple[int, int], seed: int, share: float) -> None:
    above = np.random.default_rng(seed).random(shape) < share
    labels, count = ndimage.label(above, structure=np.ones((3, 3)))
    found = connected_regions(above)
    assert len(np.unique(found[above])) == count
    assert len(np.unique(np.stack([labels.ravel(), found.ravel()]), axis=1).T) <= count + 1
    assert ((found == 0) == ~above).all()


def snake(size: int) -> np.ndarray:
    """One region that winds through the map, a cell wide."""
    above = np.zeros((size, size), dtype=bool)
    above[::2] = True
    above[1::4, -1] = above[3::4, 0] = True
    return above


@pytest.mark.parametrize("turned", [False, True])
def test_a_long_region_is_one(turned: bool) -> None:
    above = snake(255).T if turned else snake(255)
    for each in (above, above[::-1], above[:, ::-1]):
        assert len(np.unique(connected_regions(each)[each])) == 1
        broken = each.copy()
        broken[127] = broken[:, 127] = False
        _, count = ndimage.label(broken, structure=np.ones((3, 3)))
        assert len(np.unique(connected_regions(broken)[broken])) == count


def test_a_cell_below_the_threshold_stands_alone() -> None:
    scores = np.array([[3.0, 1.0, 3.0], [0.0, 0.0, 0.0]])
    assert worst_region(scores, 0, 1, 2.0).tolist() == [[False, True, False], [False] * 3]
    assert worst_region(scores, 0, 1, 0.5).tolist() == [[True] * 3, [False] * 3]
    assert [r.tolist() for r in anomalous_regions(scores, 5.0)] == [
        [[True, False, False], [False] * 3]
    ]


def test_regions_of_equal_peaks_come_in_reading_order() -> None:
    scores = np.zeros((3, 7))
    scores[1, 5] = scores[2, 1] = scores[0, 3] = 1.0
    tops = [int(r.argmax()) for r in anomalous_regions(scores, 0.5)]
    assert tops == [3, 12, 15]


def test_specks_without_end_are_cut_off() -> None:
    scores = np.zeros((40, 40))
    scores[::2, ::2] = np.random.default_rng(0).uniform(1, 2, (20, 20))
    regions = anomalous_regions(scores, 0.5)
    assert len(regions) == MAX_REGIONS
    assert scores[regions[0]].max() == scores.max()


@given(
    row=st.integers(0, 7), col=st.integers(0, 7), height=st.integers(1, 8), width=st.integers(1, 8)
)
def test_cells_of_a_regions_box_are_the_region(row: int, col: int, height: int, width: int) -> None:
    region = np.zeros((8, 8), dtype=bool)
    region[row : row + height, col : col + width] = True
    size = (97, 203)
    box = region_box(region, PREPROCESSING, size)
    assert (PREPROCESSING.cells_in(box, (8, 8), size) == region).all()


def test_a_box_smaller_than_a_cell_holds_the_cell_it_lies_in() -> None:
    held = PREPROCESSING.cells_in((0, 30, 1, 1), (8, 8), (64, 64))
    assert np.argwhere(held).tolist() == [[3, 0]]


@pytest.mark.parametrize("box", [(-1, 0, 5, 5), (0, 0, 65, 5), (60, 60, 10, 1), (3, 3, 0, 4)])
def test_a_box_outside_the_image_is_refused(box: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="64 x 64"):
        PREPROCESSING.cells_in(box, (8, 8), (64, 64))
