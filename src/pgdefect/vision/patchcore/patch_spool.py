"""Patch embeddings of a training on disk: memory does not grow with the images, and a training
that was interrupted need not extract them again.

A spool with a key is kept when its process is killed or loses the database, and the next one with
the same key resumes it. A journal lists what is in it: a line for each whole batch, written
after the batch, with checksums of both. Nothing is forced to the disk; where a power cut tore
something, the checksums tell, and the spool is good up to the batch before.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgdefect.core.distance import Precision
from pgdefect.core.errors import DatabaseError, TrainingError
from pgdefect.core.file_claims import claim, locks_work, new_claimed, remove_unclaimed
from pgdefect.core.types import Float32
from pgdefect.core.wording import option

__all__ = ["KEPT_DAYS", "PatchSpool", "SpoolKey", "content_hash", "leftovers"]

KEPT_DAYS = 3
"""After so long what a killed training left is removed by the next training of anything."""
_KEYED = "of"


@dataclass(frozen=True)
class SpoolKey:
    """What a spool is for: subject, a training of what; content, all that decides its patches.

    Both in hexadecimal. A spool of the same subject and other content is stale, and removed.
    """

    subject: str
    content: str

    @property
    def prefix(self) -> str:
        """What the names of the subject's spools begin with."""
        return f"training-{_KEYED}-{self.subject[:12]}-"

    @property
    def folder_name(self) -> str:
        return f"{self.prefix}{self.content[:32]}"


def content_hash(value: Any) -> str:
    """In hexadecimal, of what JSON can say."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class PatchSpool:
    """Memory-mapped arrays in a folder that goes with the block.

    Values are kept in the precision of the bank they are for: half takes 2 bytes each. With a key
    the folder stays where the block is killed or ends by a DatabaseError; if another process has
    a spool of the same key, this one is without.

    resumed: the entries (`append`) of the batches that were there already, after `allocate`.
    """

    def __init__(self, folder: Path, precision: Precision, key: SpoolKey | None = None) -> None:
        self.dtype = np.dtype(np.float16 if precision == "half" else np.float32)
        self._parent = folder
        self._key = key
        self._held: int | None = None
        self._journal: int | None = None
        self.resumed: list[dict[str, Any]] = []
        self.grids: list[tuple[int, int]] = []
        """`(rows, cols)` of the images appended, in order."""
        self._starts = [0]

    def __enter__(self) -> PatchSpool:
        self._parent.mkdir(parents=True, exist_ok=True)
        self._sweep()
        if self._key is not None and locks_work(self._parent):
            self._folder = self._parent / self._key.folder_name
            self._folder.mkdir(exist_ok=True)
            self._held = claim(self._folder)
        if self._held is None:
            self._key = None
            self._folder, self._held = new_claimed(self._parent, f"training-{os.getpid()}-")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._key is None or not isinstance(error, DatabaseError):
            shutil.rmtree(self._folder, ignore_errors=True)
        for descriptor in (self._journal, self._held):
            if descriptor is not None:
                os.close(descriptor)

    def _sweep(self) -> None:
        """Remove what killed trainings left, but what can be of use yet."""
        key = self._key
        for folder, kept in leftovers(self._parent):
            if key and folder.name == key.folder_name:
                continue
            if not kept or (key and folder.name.startswith(key.prefix)):
                remove_unclaimed([folder])

    def allocate(self, num_patches: int, embedding_dim: int) -> None:
        """Make room, and resume from what is there. Raises TrainingError where the disk is full."""
        shape = (num_patches, embedding_dim)
        path = self._folder / "patches"
        if self._key is None:
            self._patches = self._array("patches", shape)
            return
        there = path.is_file() and path.stat().st_size == self._bytes(shape)
        self._journal = os.open(
            self._folder / "batches", os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        if there and num_patches:
            self._patches = np.memmap(path, dtype=self.dtype, mode="r+", shape=shape)
            self._resume()
        else:
            os.ftruncate(self._journal, 0)
            self._patches = self._array("patches", shape)

    def _resume(self) -> None:
        assert self._journal is not None
        good = 0
        for line, shape, checksum, entry in _whole_lines(self._journal):
            count, rows, cols = shape
            start = self._starts[-1]
            stop = start + count * rows * cols
            if stop > len(self._patches) or checksum != zlib.crc32(self._patches[start:stop].data):
                break
            self._count(count, rows, cols)
            self.resumed.append(entry)
            good += len(line)
        os.ftruncate(self._journal, good)

    def append(self, patches: Float32, entry: Mapping[str, Any] | None = None) -> None:
        """Add images `(n, rows, cols, embedding_dim)` behind those there are.

        Args:
            entry: what `resumed` is to say of this batch; of JSON types.

        Raises:
            TrainingError: where there is no room left, or a value is out of range.
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
                f"{option('precision', 'single')}"
            )
        self._count(count, rows, cols)
        if self._journal is not None:
            checksum = zlib.crc32(self._patches[start:stop].data)
            line = _line((count, rows, cols), checksum, entry or {})
            try:
                os.write(self._journal, line)
            except OSError as error:
                raise self._full(len(line)) from error

    def _count(self, count: int, rows: int, cols: int) -> None:
        start = self._starts[-1]
        self.grids += [(rows, cols)] * count
        self._starts += range(start + rows * cols, start + count * rows * cols + 1, rows * cols)

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

    def _bytes(self, shape: tuple[int, ...]) -> int:
        return int(np.prod(shape, dtype=np.int64)) * self.dtype.itemsize

    def _array(self, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        path, needed = self._folder / name, self._bytes(shape)
        path.unlink(missing_ok=True)
        if needed > shutil.disk_usage(self._folder).free:
            # Another training's leftovers are worth less than this one.
            remove_unclaimed(folder for folder, _ in leftovers(self._parent))
        if needed > shutil.disk_usage(self._folder).free:
            raise self._full(needed)
        array: NDArray[Any] = np.memmap(path, dtype=self.dtype, mode="w+", shape=shape)
        if needed:
            # Now, and not when a page is written: that would be a signal, SIGBUS.
            with path.open("r+b") as file:
                try:
                    os.posix_fallocate(file.fileno(), 0, needed)
                except OSError as error:
                    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                        raise
                    raise self._full(needed) from error
        return array

    def _full(self, needed: int) -> TrainingError:
        free = shutil.disk_usage(self._folder).free
        return TrainingError(
            f"training needs {needed / 1e9:.1f} GB of scratch space in {self._parent} and "
            f"{free / 1e9:.1f} GB are free. Free some, or set PGDEFECT_CACHE_DIR elsewhere"
        )


def leftovers(folder: Path) -> Iterator[tuple[Path, bool]]:
    """Spools in a folder whose process seems to be gone, and whether they can be of use yet.

    Whether it is gone, `pgdefect.core.file_claims.claim` tells.
    """
    for spool in sorted(folder.glob("training-*")):
        kind = spool.name.split("-")[1]
        if kind == _KEYED:
            journal = spool / "batches"
            try:
                since = (journal if journal.exists() else spool).stat().st_mtime
            except FileNotFoundError:
                continue
            yield spool, time.time() - since < KEPT_DAYS * 86_400
        elif kind.isdigit() and not Path("/proc", kind).exists():
            yield spool, False


def _line(shape: tuple[int, int, int], checksum: int, entry: Mapping[str, Any]) -> bytes:
    content = json.dumps([shape, checksum, entry]).encode()
    return b"%08x %s\n" % (zlib.crc32(content), content)


def _whole_lines(
    journal: int,
) -> Iterator[tuple[bytes, tuple[int, int, int], int, dict[str, Any]]]:
    """Lines of a journal up to the first that is torn, with what they say."""
    with open(os.dup(journal), "rb") as file:
        file.seek(0)
        for line in file:
            checksum, _, content = line.rstrip(b"\n").partition(b" ")
            if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(content):
                return
            (count, rows, cols), of_patches, entry = json.loads(content)
            yield line, (count, rows, cols), of_patches, entry
