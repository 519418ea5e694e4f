"""Prepared images on disk, for trainings that see each many times."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pgdefect.core.types import Float32
from pgdefect.vision.images.preprocess import Batch, Preprocessing

__all__ = ["ImageCache"]


class ImageCache:
    """Prepared images in a file that is gone when the block ends: 200 kB each at 256 × 256."""

    def __init__(self, folder: Path, preprocessing: Preprocessing) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._shape = (3, *preprocessing.input_size)
        self._pixels: NDArray[np.uint8] | None = None
        self.count = 0

    def __enter__(self) -> ImageCache:
        return self

    def __exit__(self, *_: object) -> None:
        self._pixels = None
        self._file.close()

    def append(self, batch: Batch) -> None:
        # Prepared pixels are whole 255ths.
        self._file.write(np.rint(batch.inputs * np.float32(255.0)).astype(np.uint8).tobytes())
        self.count += len(batch.indices)

    def __getitem__(self, index: int) -> Float32:
        """One image `(3, height, width)`, from 0 to 1."""
        if self._pixels is None:
            self._file.flush()
            self._pixels = np.memmap(
                self._file, dtype=np.uint8, mode="r", shape=(self.count, *self._shape)
            )
        image: Float32 = self._pixels[index] * np.float32(1 / 255)
        return image
