"""Connected anomalous regions of an anomaly map."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pgdefect.core.boxes import Box
from pgdefect.vision.images.preprocess import Preprocessing

__all__ = ["MAX_REGIONS", "anomalous_regions", "region_box", "worst_region"]

MAX_REGIONS = 32
"""Of one image; a texture that is anomalous all over falls into countless specks."""


def connected_regions(above: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Number the connected regions of true cells `(rows, cols)`; 0 where a cell is false.

    Cells that touch at a corner are connected. Runs of cells in a row are joined with the runs
    that they touch in the next row by union-find, whole arrays at a time. Equal to
    scipy.ndimage.label but for the order of the numbers; SciPy is not a dependency of
    inspection, and would be one for this alone.
    """
    cols = above.shape[1]
    edges = np.diff(np.pad(above.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    row, start = np.nonzero(edges == 1)
    end = np.nonzero(edges == -1)[1]
    # Places on one line, row after row, so that a range of touching runs is found by bisection.
    line = cols + 1
    first = np.searchsorted(row * line + end, (row + 1) * line + start, side="left")
    last = np.searchsorted(row * line + start, (row + 1) * line + end, side="right")
    touching = (last - first).clip(0)
    upper = np.repeat(np.arange(len(row)), touching)
    before = np.cumsum(touching) - touching
    lower = np.arange(len(upper)) + np.repeat(first - before, touching)
    root = np.arange(len(row))
    while len(upper):
        one, other = root[upper], root[lower]
        apart = one != other
        upper, lower, one, other = upper[apart], lower[apart], one[apart], other[apart]
        np.minimum.at(root, np.maximum(one, other), np.minimum(one, other))
        while (root[root] != root).any():
            root = root[root]
    labels = np.zeros(above.shape, dtype=np.int64)
    labels[above] = np.repeat(root + 1, end - start)
    return labels


def worst_region(
    scores: NDArray[np.floating], row: int, col: int, threshold: float
) -> NDArray[np.bool_]:
    """Cells of `scores` `(rows, cols)` above `threshold` that are connected with one.

    Diagonal neighbors are connected. A cell that is not above the threshold stands alone.
    """
    labels = connected_regions(scores > threshold)
    if not labels[row, col]:
        labels[row, col] = -1
    return np.asarray(labels == labels[row, col])


def anomalous_regions(scores: NDArray[np.floating], threshold: float) -> list[NDArray[np.bool_]]:
    """The regions of `scores` `(rows, cols)` above `threshold`, highest peak first.

    Each is a mask `(rows, cols)`; at most `MAX_REGIONS`. Where no cell is above the
    threshold, the worst cell is the one region.
    """
    labels = connected_regions(scores > threshold)
    if not labels.any():
        labels.flat[int(scores.argmax())] = 1
    cells = np.flatnonzero(labels)
    by_score = labels.flat[cells[np.argsort(-scores.flat[cells], kind="stable")]]
    found, peaks = np.unique(by_score, return_index=True)
    return [labels == label for label in found[np.argsort(peaks)][:MAX_REGIONS]]


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
