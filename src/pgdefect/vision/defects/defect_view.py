"""A second look at an anomalous image: the backbone's deepest layers, in four orientations.

Detection looks at fine layers and evens out light; what a defect *is* shows in deep layers, in
the photograph as it is. A scratch is a scratch however the part lies. Only anomalous images
are looked at twice.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pgdefect.core.types import DefectViewArtifact, Float32
from pgdefect.vision.images.preprocess import Preprocessing
from pgdefect.vision.networks.extractor import compile_graph

__all__ = ["DefectView", "Features", "interpolation"]

Features = Sequence[Float32]
"""By layer, the deepest last: `(rows, cols, dim)`."""
FLIPS: tuple[tuple[int, ...], ...] = ((), (-1,), (-2,), (-2, -1))
"""Axes of `(…, height, width)` that each orientation turns round."""


class DefectView:
    """Deep layers of photographs, stretched to a square.

    Calling it with a photograph, uint8 `(height, width, 3)`, gives the values of each layer,
    `(rows, cols, dim)`: the mean of the orientations, each turned back.
    """

    def __init__(
        self,
        artifact: DefectViewArtifact,
        num_threads: int | None = None,
        *,
        orientations: int = len(FLIPS),
    ) -> None:
        self._flips = FLIPS[:orientations]
        self._compiled = compile_graph(artifact.onnx, num_threads)
        side = artifact.side
        self._preprocessing = Preprocessing((side, side), mean=artifact.mean, std=artifact.std)

    def __call__(self, image: NDArray[np.uint8]) -> list[Float32]:
        inputs = self._preprocessing.apply(image)
        turned = np.stack([np.flip(inputs, axes) for axes in self._flips])
        return [
            np.mean(
                # The layer's axes are (rows, cols, dim): one further to the left.
                [
                    np.flip(one, tuple(axis - 1 for axis in axes))
                    for one, axes in zip(np.asarray(layer), self._flips, strict=True)
                ],
                axis=0,
                dtype=np.float32,
            )
            for layer in self._compiled(turned).to_tuple()
        ]


def interpolation(cells: int, points: int) -> Float32:
    """The matrix `(points, cells)` that draws out values of cells to a finer or coarser row.

    Linear between the middles of cells, constant beyond the outermost (as torch's
    ``interpolate`` with ``align_corners=False``).
    """
    places = ((np.arange(points) + 0.5) * cells / points - 0.5).clip(0, cells - 1)
    left = np.minimum(places.astype(int), max(cells - 2, 0))
    share = (places - left).astype(np.float32)
    matrix = np.zeros((points, cells), dtype=np.float32)
    rows = np.arange(points)
    matrix[rows, left] = 1 - share
    if cells > 1:
        matrix[rows, left + 1] += share
    return matrix
