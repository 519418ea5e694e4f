"""Patch embeddings from an exported graph, without torch.

OpenVINO runs the graph in full precision: its default on processors with bfloat16 units
would move the features by one part in a hundred. ONNX Runtime would do as well: on two idle
cores, in batches of 8, both take 4.8 ms an image for EfficientNet-Lite0, and for Wide ResNet-50 it
takes 78 ms against 84. Beside other work, decoding and scoring for instance, it took 14 to 17 ms
of processor time for the former against 10.5 (`python -m benchmarks features`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgdefect.core.errors import DatabaseError
from pgdefect.core.threads import num_cpus
from pgdefect.core.types import ExtractorArtifact, Float32
from pgdefect.vision.images.preprocess import KEEP_MULTIPLE, Preprocessing

__all__ = ["Extractor", "compile_graph", "image_embeddings", "unit_vectors"]

BATCH_SIZE = 8


class Extractor:
    """An exported extractor loaded for inference.

    Calling it with preprocessed images `(n, 3, height, width)` gives raw patch embeddings
    `(n, rows, cols, embedding_dim)`, float32.
    """

    def __init__(self, artifact: ExtractorArtifact, *, num_threads: int | None = None) -> None:
        self.artifact = artifact
        self.preprocessing = Preprocessing.from_dict(artifact.spec.preprocessing)
        self._compiled = compile_graph(artifact.onnx, num_threads)

    def __call__(self, images: Float32) -> Float32:
        height, width = self.preprocessing.input_size
        if self.preprocessing.resize == "stretch":
            if images.shape[1:] != (3, height, width):
                raise ValueError(f"expected images (n, 3, {height}, {width}), got {images.shape}")
        elif any(side % KEEP_MULTIPLE for side in images.shape[2:]):
            raise ValueError(f"expected sides of a multiple of {KEEP_MULTIPLE}, got {images.shape}")
        return np.array(self._compiled(images)[0], dtype=np.float32)

    def grid_of(self, original: tuple[int, int]) -> tuple[int, int]:
        """`(rows, cols)` of the patches of an image of that `(height, width)`.

        Same rule in SQL: defect.patch_box.
        """
        (nominal_height, nominal_width) = self.preprocessing.input_size
        height, width = self.preprocessing.input_size_of(original)
        return (
            self.artifact.rows * height // nominal_height,
            self.artifact.cols * width // nominal_width,
        )


def compile_graph(onnx: bytes, num_threads: int | None = None) -> Any:
    """An ONNX graph compiled for this processor, in full precision.

    Raises:
        DatabaseError: it is no graph that can be run.
    """
    import openvino

    core = openvino.Core()
    options = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        # Pinned threads of two processes wait for each other, and a single image is slower.
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_NUM_THREADS": num_threads or num_cpus(),
    }
    try:
        return core.compile_model(core.read_model(onnx, b""), "CPU", options)
    except Exception as error:  # OpenVINO has no common base class
        # Its first line is a place in OpenVINO's own source.
        reason = ([line for line in str(error).splitlines() if line.strip()] or ["no reason"])[-1]
        raise DatabaseError(
            f"the stored network of {len(onnx):,} bytes cannot be run: {reason}. It may be "
            "damaged, or made by another version; train the category again"
        ) from error


def image_embeddings(patches: Float32) -> Float32:
    """One unit vector per image, `(n, dim)`: the mean of its patches `(n, rows, cols, dim)`."""
    return unit_vectors(patches.mean(axis=(1, 2), dtype=np.float64))


def unit_vectors(means: NDArray[np.floating[Any]]) -> Float32:
    """Vectors `(n, dim)` scaled to length 1; one of zeros stays as it is."""
    norms = np.linalg.norm(means, axis=1, keepdims=True)
    return np.asarray(means / np.where(norms == 0.0, 1.0, norms), dtype=np.float32)
