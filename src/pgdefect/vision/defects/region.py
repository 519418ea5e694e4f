"""Connected anomalous regions of an anomaly map."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pgdefect.core.boxes import Box
from pgdefect.vision.images.preprocess import Preprocessing

__all__ = ["MAX_REGIONS", "anomalous_regions", "region_box", "worst_region"]

MAX_REGIONS = 32
"""Of one image; a texture that is anomalous all over falls into countless specks."""


def worst_region(
    scores: NDArray[np.floating], row: int, col: int, threshold: float
) -> NDArray[np.bool_]:
    """Cells of `scores` `(rows, cols)` above `threshold` that hang together with one.

    Diagonal neighbours hang together. A cell that is not above the threshold stands alone.
    """
    above = scores > threshold
    region = np.zeros(scores.shape, dtype=bool)
    region[row, col] = True
    while above[row, col]:
        padded = np.pad(region, 1)
        rows = padded[:-2] | padded[1:-1] | padded[2:]
        grown = (rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:]) & above
        if (grown == region).all():
            break
        region = grown
    return region


def anomalous_regions(scores: NDArray[np.floating], threshold: float) -> list[NDArray[np.bool_]]:
    """The regions of `scores` `(rows, cols)` above `threshold`, highest peak first.

    Each is a mask `(rows, cols)`; at most `MAX_REGIONS`. Where no cell is above the
    threshold, the worst cell is the one region.
    """
    left = scores.copy()
    found: list[NDArray[np.bool_]] = []
    while len(found) < MAX_REGIONS:
        row, col = np.unravel_index(int(left.argmax()), left.shape)
        if found and not left[row, col] > threshold:
            break
        region = worst_region(scores, int(row), int(col), threshold)
        found.append(region)
        left[region] = -np.inf
    return found


def region_box(
    region: NDArray[np.bool_], preprocessing: Preprocessing, original: tuple[int, int]
) -> Box:
    """`(x, y, width, height)` around a region's cells, in pixels of the original image.

    `region` is `(rows, cols)` with at least one cell, `original` `(height, width)`.
    """
    rows, cols = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    left, top, _, _ = preprocessing.grid_to_pixels(
        int(rows[0]), int(cols[0]), region.shape, original
    )
    x, y, width, height = preprocessing.grid_to_pixels(
        int(rows[-1]), int(cols[-1]), region.shape, original
    )
    return left, top, x + width - left, y + height - top
