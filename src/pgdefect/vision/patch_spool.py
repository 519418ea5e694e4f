"""Patch embeddings of a training on disk, so that memory does not grow with the images."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgdefect.distance import Precision
from pgdefect.errors import TrainingError
from pgdefect.types import Float32

__all__ = ["PatchSpool"]


class PatchSpool:
    """Memory-mapped arrays in a folder that goes with the block, however it ends.

    Values are kept in the precision of the bank they are for: half takes 2 bytes each.
    """

    def __init__(self, folder: Path, precision: Precision) -> None:
        self.dtype = np.dtype(np.float16 if precision == "half" else np.float32)
        self._parent = folder
        self.grids: list[tuple[int, int]] = []
        """`(rows, cols)` of the images appended, in order."""
        self._starts = [0]

    def __enter__(self) -> PatchSpool:
        self._parent.mkdir(parents=True, exist_ok=True)
        self._sweep()
        self._folder = Path(tempfile.mkdtemp(prefix=f"training-{os.getpid()}-", dir=self._parent))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def _sweep(self) -> None:
        """Remove what killed trainings left; their process is gone."""
        for folder in self._parent.glob("training-*"):
            pid = folder.name.split("-")[1]
            if pid.isdigit() and not Path("/proc", pid).exists():
                shutil.rmtree(folder, ignore_errors=True)

    def allocate(self, num_patches: int, embedding_dim: int) -> None:
        """Make room. Raises TrainingError where the disk has not enough."""
        self._patches = self._array("patches", (num_patches, embedding_dim))

    def append(self, patches: Float32) -> None:
        """Add images `(n, rows, cols, embedding_dim)` behind those there are.

        Raises TrainingError where there is no room left, or a value is out of range.
        """
        count, rows, cols, dim = patches.shape
        start = self._starts[-1]
        stop = start + count * rows * cols
        if stop > len(self._patches):
            raise TrainingError(
                "images have another size than when they were ingested; ingest them again"
            )
        with np.errstate(over="ignore"):
            self._patches[start:stop] = patches.reshape(-1, dim)
        if not np.isfinite(self._patches[start:stop]).all():
            raise TrainingError(
                f"patch embeddings exceed the range of {self.dtype.name}; train with "
                "--precision single"
            )
        self.grids += [(rows, cols)] * count
        self._starts += range(start + rows * cols, stop + 1, rows * cols)

    def patches_of(self, first: int, stop: int) -> NDArray[Any]:
        """All patches of the images from `first` to before `stop`, `(num_patches,
        embedding_dim)`, memory-mapped.
        """
        return self._patches[self._starts[first] : self._starts[stop]]

    def cells(
        self, indices: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Image, row and column of patches, counted from the first image's first."""
        starts = np.array(self._starts)
        image = np.searchsorted(starts, indices, side="right") - 1
        cols = np.array([cols for _, cols in self.grids])
        row, col = np.divmod(indices - starts[image], cols[image])
        return image, row, col

    def scratch(self, shape: tuple[int, int]) -> NDArray[Any]:
        """A further memory-mapped array."""
        return self._array("scratch", shape)

    def _array(self, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        needed = int(np.prod(shape, dtype=np.int64)) * self.dtype.itemsize
        free = shutil.disk_usage(self._folder).free
        if needed > free:
            raise TrainingError(
                f"training needs {needed / 1e9:.1f} GB of scratch space in {self._parent} and "
                f"{free / 1e9:.1f} GB are free. Free some, or set PGDEFECT_CACHE_DIR elsewhere"
            )
        array: NDArray[Any] = np.memmap(
            self._folder / name, dtype=self.dtype, mode="w+", shape=shape
        )
        return array
