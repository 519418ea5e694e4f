"""EfficientAD at inspection: one exported network from pixels to scores, without torch."""

from __future__ import annotations

import numpy as np

from pgdefect.core.types import ExtractorArtifact, Float32, NetworkArtifact, PatchScores
from pgdefect.vision.images.preprocess import Preprocessing
from pgdefect.vision.networks.extractor import compile_graph, unit_vectors

__all__ = ["Network"]


class Network:
    """An exported EfficientAD network loaded for inference.

    Calling it with preprocessed images `(n, 3, height, width)` gives their image embeddings
    `(n, dim)`, unit vectors as the extractor's, and what it says of each.
    """

    def __init__(
        self,
        artifact: NetworkArtifact,
        extractor: ExtractorArtifact,
        *,
        num_threads: int | None = None,
    ) -> None:
        self.preprocessing = Preprocessing.from_dict(extractor.spec.preprocessing)
        self.grid = (extractor.rows, extractor.cols)
        self._compiled = compile_graph(artifact.onnx, num_threads)

    def __call__(self, images: Float32) -> tuple[Float32, list[PatchScores]]:
        height, width = self.preprocessing.input_size
        if images.shape[1:] != (3, height, width):
            raise ValueError(f"expected images (n, 3, {height}, {width}), got {images.shape}")
        # The results share memory with the next call's.
        scores, pixels, maps, means = (
            np.array(value) for value in self._compiled(images).to_tuple()
        )
        return unit_vectors(means.astype(np.float64)), [
            self._scores(float(score), int(pixel), anomaly_map)
            for score, pixel, anomaly_map in zip(scores, pixels, maps, strict=True)
        ]

    def _scores(self, score: float, pixel: int, anomaly_map: Float32) -> PatchScores:
        (height, width), (rows, cols) = self.preprocessing.input_size, self.grid
        y, x = divmod(pixel, width)
        return PatchScores(
            distances=anomaly_map,
            positions=None,
            worst_row=(2 * y + 1) * rows // (2 * height),
            worst_col=(2 * x + 1) * cols // (2 * width),
            raw_score=score,
        )
