"""A second look at an anomalous image: the backbone's deepest layers, at more than one size.

Detection looks at fine layers and evens out light; what a defect *is* shows in deep layers, in
the photograph as it is. Only anomalous images are looked at twice.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pgdefect.types import DefectViewArtifact, Float32
from pgdefect.vision.extractor import compile_graph
from pgdefect.vision.preprocess import Preprocessing

__all__ = ["DefectView", "interpolation"]

Features = Sequence[Sequence[Float32]]
"""By size, then by layer: `(rows, cols, dim)`."""


class DefectView:
    """Deep layers of photographs, stretched to a square of each size.

    Calling it with a photograph, uint8 `(height, width, 3)`, gives for each size the values of
    each layer, `(rows, cols, dim)`, the deepest last.
    """

    def __init__(self, artifact: DefectViewArtifact, num_threads: int | None = None) -> None:
        self._compiled = compile_graph(artifact.onnx, num_threads)
        self._preprocessing = [
            Preprocessing(image_size=(size, size), mean=artifact.mean, std=artifact.std)
            for size in artifact.sizes
        ]

    def __call__(self, image: NDArray[np.uint8]) -> list[list[Float32]]:
        return [
            [
                np.array(layer[0], dtype=np.float32)
                for layer in self._compiled(preprocessing.apply(image)[None]).to_tuple()
            ]
            for preprocessing in self._preprocessing
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
