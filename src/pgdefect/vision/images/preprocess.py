"""From a decoded image to the network's input, and back to image coordinates.

Training and inference both go through `Preprocessing.apply`, so that a pixel cannot mean
one thing to the memory bank and another to an inspection. The settings are plain data and
part of an extractor's fingerprint.
"""

from __future__ import annotations

import math
import reprlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pgdefect.core.arrays import Float32
from pgdefect.core.errors import ImageError, UsageError
from pgdefect.vision.images.gray_scale import GrayScale
from pgdefect.vision.images.image import ImageFile, read_image
from pgdefect.vision.images.local_contrast import local_contrast

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "Batch", "Preprocessing", "batches"]


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MIN_SIZE, MAX_SIZE = 32, 4096
"""Sides in pixels; of larger images the feature maps would take tens of gigabytes."""
MIN_LOCAL_CONTRAST = 0.01
RESIZES = ("keep", "stretch")
KEEP_MULTIPLE, KEEP_LEAST, KEEP_MOST = 16, 4, 256
"""Sides with resize keep, in pixels and multiples; a very long image is squeezed after all."""
LATER: Mapping[str, Any] = MappingProxyType(
    {"resize": "stretch", "local_contrast": None, "least_side": None}
)
"""Settings that came later, with the value that means what was done before."""
BATCHES_AHEAD = 2

_INTERPOLATIONS = ("bilinear", "bicubic")


@dataclass(frozen=True)
class Preprocessing:
    """Resize, cut `center_crop` out of the middle, even out the light, normalize per channel.

    Sizes are `(height, width)` in pixels, each side 32 to 4,096; `mean` and `std` are RGB
    in units of the value range 0..1. `resize` is ``stretch``, to `image_size` whatever the
    aspect ratio, or ``keep``: to the aspect ratio of the image and the area of `image_size`,
    each side a multiple of 16. Both antialias (Pillow's filters). Where the margin is odd, the
    crop lies half a pixel towards the top left. `local_contrast` is the reach of
    `pgdefect.vision.images.local_contrast`, or None. `least_side` is what resize keep does not make
    the shorter side of a long image less than, in pixels, unless it is less in the image. Raises
    UsageError for settings that do not fit together.
    """

    image_size: tuple[int, int] = (256, 256)
    center_crop: tuple[int, int] | None = None
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: str = "bilinear"
    resize: str = "stretch"
    local_contrast: float | None = None
    least_side: int | None = None

    def __post_init__(self) -> None:
        self._set("image_size", _checked_size("image_size", self.image_size))
        if self.center_crop is not None:
            self._set("center_crop", _checked_size("center_crop", self.center_crop))
            if any(c > s for c, s in zip(self.center_crop, self.image_size, strict=True)):
                raise UsageError(
                    f"center_crop {self.center_crop} is larger than image_size "
                    f"{self.image_size}. Choose a crop that fits into the resized image."
                )
        self._set("mean", _checked_channels("mean", self.mean))
        self._set("std", _checked_channels("std", self.std))
        if min(self.std) <= 0:
            raise UsageError(f"std must be above 0 in every channel, not {self.std}.")
        if self.interpolation not in _INTERPOLATIONS:
            raise UsageError(
                f"Unknown interpolation {self.interpolation!r}. "
                f"Choose one of: {', '.join(_INTERPOLATIONS)}."
            )

        if self.resize not in RESIZES:
            raise UsageError(
                f"Unknown resize {self.resize!r}. Choose one of: {', '.join(RESIZES)}."
            )
        if self.resize == "keep" and self.center_crop is not None:
            raise UsageError(
                "A center crop is cut out of images of one size: use it with resize stretch."
            )
        if self.local_contrast is not None:
            if type(self.local_contrast) not in (int, float) or not (
                MIN_LOCAL_CONTRAST <= self.local_contrast <= 1.0
            ):
                raise UsageError(
                    f"local_contrast must be a number from {MIN_LOCAL_CONTRAST} to 1, not "
                    f"{self.local_contrast!r}."
                )
            self._set("local_contrast", float(self.local_contrast))
        if self.least_side is not None and (
            type(self.least_side) is not int or not MIN_SIZE <= self.least_side <= MAX_SIZE
        ):
            raise UsageError(
                f"least_side must be a whole number from {MIN_SIZE} to {MAX_SIZE}, not "
                f"{self.least_side!r}."
            )

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @property
    def input_size(self) -> tuple[int, int]:
        """`(height, width)` of what the network sees; with resize keep, of an image shaped
        like `image_size`.
        """
        return self.input_size_of(self.image_size)

    def input_size_of(self, original: tuple[int, int]) -> tuple[int, int]:
        """`(height, width)` of what the network sees of an image of size `original`.

        Same rule in SQL: defect.patch_box.
        """
        if self.resize == "stretch":
            return self.center_crop or self.image_size
        scale = math.sqrt(math.prod(self.image_size) / math.prod(original))
        if self.least_side is not None:
            scale = max(scale, min(self.least_side / min(original), 1.0))
        height, width = (
            KEEP_MULTIPLE
            * min(max(math.floor(side * scale / KEEP_MULTIPLE + 0.5), KEEP_LEAST), KEEP_MOST)
            for side in original
        )
        return height, width

    @property
    def crop_size(self) -> tuple[int, int]:
        """`(height, width)` of the part of `image_size` that the network sees."""
        return self.center_crop or self.image_size

    @property
    def crop_offset(self) -> tuple[int, int]:
        """`(top, left)` of the crop in the resized image, in pixels."""
        (height, width), (crop_height, crop_width) = self.image_size, self.crop_size
        return (height - crop_height) // 2, (width - crop_width) // 2

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON types; `from_dict` gives back an equal object.

        Those of `LATER` are left out where they change nothing, so that extractors stored
        before there were any keep their fingerprint.
        """
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
            if LATER.get(name, ...) != value
        }

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Preprocessing:
        """The inverse of `to_dict`. Every key but those of `LATER` must be there, since a
        default that fills a gap today may be another one tomorrow. Raises UsageError.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(settings.keys() - known)
        missing = sorted(known - settings.keys() - LATER.keys())
        if unknown or missing:
            raise UsageError(
                f"These are not preprocessing settings: unknown {unknown}, missing {missing}. "
                f"Expected exactly {sorted(known)}."
            )
        return cls(**settings)

    def apply(self, image: npt.NDArray[np.uint8], out: Float32 | None = None) -> Float32:
        """Prepare one image: uint8 `(height, width, 3)` to float32 `(3, height, width)`.

        `out` receives the result where given and must be float32 of that shape.
        Raises ValueError for arrays of another shape or dtype.
        """
        from PIL import Image

        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            raise ValueError(
                f"image must be uint8 (height, width, 3), not {image.dtype} {image.shape}"
            )
        height, width = self.input_size_of(image.shape[:2])
        if out is None:
            out = np.empty((3, height, width), dtype=np.float32)
        elif out.dtype != np.float32 or out.shape != (3, height, width):
            raise ValueError(
                f"out must be float32 {(3, height, width)}, not {out.dtype} {out.shape}"
            )
        resized = Image.fromarray(image).resize(
            self.image_size[::-1] if self.resize == "stretch" else (width, height),
            Image.Resampling[self.interpolation.upper()],
            reducing_gap=None,
        )
        top, left = self.crop_offset
        pixels = np.asarray(resized)[top : top + height, left : left + width]
        mean, std, full = np.array(self.mean), np.array(self.std), 255.0
        if self.local_contrast is not None:
            pixels, full = local_contrast(pixels, self.local_contrast), 1.0
        scale = (1 / (full * std)).astype(np.float32)
        offset = (-mean / std).astype(np.float32)
        np.multiply(pixels.transpose(2, 0, 1), scale[:, None, None], out=out)
        np.add(out, offset[:, None, None], out=out)
        return out

    def grid_to_pixels(
        self, row: int, col: int, grid: tuple[int, int], original: tuple[int, int]
    ) -> tuple[int, int, int, int]:
        """Where a cell of the patch grid lies in the original image.

        `grid` is `(rows, cols)`, `original` the image's `(height, width)`. Returns
        `(x, y, width, height)` in original pixels, always inside the image and at least one
        pixel each way. Borders are rounded to whole pixels, and neighbors share them: over
        an image with more pixels than cells the cells tile without gap or overlap.
        Raises ValueError for a cell outside the grid.

        Same rule in SQL: defect.patch_box.
        """
        if not (0 <= row < grid[0] and 0 <= col < grid[1]):
            raise ValueError(f"no cell ({row}, {col}) in a grid of {grid[0]} x {grid[1]}")
        y, height = self._cell_extent(0, row, grid[0], original[0])
        x, width = self._cell_extent(1, col, grid[1], original[1])
        return x, y, width, height

    def cells_in(
        self, box: tuple[int, int, int, int], grid: tuple[int, int], original: tuple[int, int]
    ) -> npt.NDArray[np.bool_]:
        """The cells of the patch grid that a box of the original image holds, `(rows, cols)`.

        `box` is `(x, y, width, height)` in pixels, and holds the cells whose middle lies in
        it; of a box too small for any, those nearest to its own middle. Raises ValueError for
        a box that does not lie in the image.
        """
        x, y, width, height = box
        inside = x >= 0 and y >= 0 and x + width <= original[1] and y + height <= original[0]
        if width < 1 or height < 1 or not inside:
            raise ValueError(
                f"the box {x},{y},{width},{height} does not lie in an image of "
                f"{original[1]} x {original[0]} pixels (width x height)"
            )
        held = []
        for axis, (first, extent) in enumerate(((y, height), (x, width))):
            cells = [
                self._cell_extent(axis, n, grid[axis], original[axis]) for n in range(grid[axis])
            ]
            middles = np.array([start + length / 2 for start, length in cells])
            within = (middles >= first) & (middles < first + extent)
            if not within.any():
                within[np.abs(middles - first - extent / 2).argmin()] = True
            held.append(within)
        return np.logical_and.outer(*held)

    def _cell_extent(self, axis: int, cell: int, cells: int, length: int) -> tuple[int, int]:
        first, last = (
            _round_ratio(
                (self.crop_offset[axis] * cells + border * self.crop_size[axis]) * length,
                cells * self.image_size[axis],
            )
            for border in (cell, cell + 1)
        )
        first = min(first, length - 1)
        return first, max(last - first, 1)

    def map_to_original(
        self, anomaly_map: npt.NDArray[np.floating], original: tuple[int, int]
    ) -> Float32:
        """Lay an anomaly map over the original image.

        `anomaly_map` is `(rows, cols)` over the network's input, `original` the image's
        `(height, width)`. Returns float32 `(height, width)`: bilinear between cell centers,
        averaging where the map is finer than the image; 0 outside the center crop, which
        the network never saw.
        """
        if anomaly_map.ndim != 2 or anomaly_map.size == 0:
            raise ValueError(f"anomaly_map must be (rows, cols), not {anomaly_map.shape}")
        down = self._axis_weights(0, anomaly_map.shape[0], original[0])
        across = self._axis_weights(1, anomaly_map.shape[1], original[1])
        laid_over: Float32 = down @ anomaly_map.astype(np.float32) @ across.T
        return laid_over

    def _axis_weights(self, axis: int, cells: int, length: int) -> Float32:
        """`(length, cells)`: how much each cell gives to each original pixel. Rows sum to 1,
        and to 0 where the pixel's center is outside the crop.
        """
        per_pixel = self.image_size[axis] / length
        position = (np.arange(length) + 0.5) * per_pixel - self.crop_offset[axis]
        inside = (position >= 0) & (position < self.crop_size[axis])
        cells_per_input_pixel = cells / self.crop_size[axis]
        center = position * cells_per_input_pixel - 0.5
        reach = max(1.0, per_pixel * cells_per_input_pixel)
        weights = np.maximum(0, 1 - np.abs(center[:, None] - np.arange(cells)) / reach)
        weights[~inside] = 0
        weights[inside] /= weights[inside].sum(axis=1, keepdims=True)
        narrowed: Float32 = weights.astype(np.float32)
        return narrowed


class Batch(NamedTuple):
    """Prepared images of one size: their positions in `paths`, ascending; float32 network
    input `(len(indices), 3, height, width)`, an array of its own each time; what was read.
    """

    indices: list[int]
    inputs: Float32
    files: list[ImageFile]


def batches(
    paths: Iterable[Path | str],
    preprocessing: Preprocessing,
    batch_size: int,
    *,
    num_threads: int,
    on_error: Callable[[int, ImageError], None],
    accept: Callable[[int, ImageFile], None] | None = None,
    scale: GrayScale | None = None,
) -> Iterator[Batch]:
    """Decode and prepare images in threads, at most two batches ahead of the consumer.

    A file that cannot be read, or for which `accept(index, file)` raises ImageError (in one of
    the threads), is passed to `on_error(index, error)`, in the consumer's
    thread and in order, and left out; later images fill its place. A batch is short where
    the network's input changes its size, and at the end. Closing the iterator cancels what has
    not begun. `scale` is the gray scale of the images' category. Raises UsageError for counts
    below 1.
    """
    if batch_size < 1 or num_threads < 1:
        raise UsageError(
            f"batch_size and num_threads must be at least 1, not {batch_size} and {num_threads}."
        )
    return _batches(paths, preprocessing, batch_size, num_threads, on_error, accept, scale)


def _batches(
    paths: Iterable[Path | str],
    preprocessing: Preprocessing,
    batch_size: int,
    num_threads: int,
    on_error: Callable[[int, ImageError], None],
    accept: Callable[[int, ImageFile], None] | None,
    scale: GrayScale | None,
) -> Iterator[Batch]:
    def prepare(index: int, path: Path | str) -> tuple[ImageFile, Float32]:
        began = time.perf_counter()
        file, pixels = read_image(path, scale)
        if accept is not None:
            accept(index, file)
        prepared = preprocessing.apply(pixels)
        return replace(file, decode_ms=1000 * (time.perf_counter() - began)), prepared

    remaining = enumerate(paths)
    pending: deque[tuple[int, Future[tuple[ImageFile, Float32]]]] = deque()
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="pgdefect-images")

    def top_up() -> None:
        for index, path in islice(remaining, BATCHES_AHEAD * batch_size - len(pending)):
            pending.append((index, pool.submit(prepare, index, path)))

    try:
        waiting: list[tuple[int, ImageFile, Float32]] = []
        top_up()
        while pending:
            index, future = pending.popleft()
            try:
                file, pixels = future.result()
            except ImageError as error:
                on_error(index, error)
            else:
                if waiting and pixels.shape != waiting[0][2].shape:
                    yield _batch(waiting)
                    waiting = []
                waiting.append((index, file, pixels))
            top_up()
            if len(waiting) == batch_size:
                yield _batch(waiting)
                waiting = []
        if waiting:
            yield _batch(waiting)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _batch(images: Sequence[tuple[int, ImageFile, Float32]]) -> Batch:
    return Batch(
        [index for index, _, _ in images],
        np.stack([pixels for _, _, pixels in images]),
        [file for _, file, _ in images],
    )


def _checked_size(name: str, value: Any) -> tuple[int, int]:
    size = tuple(value) if isinstance(value, list | tuple) else ()
    if len(size) != 2 or any(
        type(side) is not int or not MIN_SIZE <= side <= MAX_SIZE for side in size
    ):
        raise UsageError(
            f"{name} must be (height, width), whole numbers of at least {MIN_SIZE} and at most "
            f"{MAX_SIZE}, not {reprlib.repr(value)}."
        )
    return size[0], size[1]


def _checked_channels(name: str, value: Any) -> tuple[float, float, float]:
    channels = tuple(value) if isinstance(value, list | tuple) else ()
    # Compared and not asked whether they are finite: a whole number may be too large a float.
    if len(channels) != 3 or any(
        type(channel) not in (int, float) or not -1e9 < channel < 1e9 for channel in channels
    ):
        raise UsageError(
            f"{name} must be three finite numbers, one a channel, not {reprlib.repr(value)}."
        )
    return float(channels[0]), float(channels[1]), float(channels[2])


def _round_ratio(numerator: int, denominator: int) -> int:
    """Divide to the nearest whole number, halves up, without floats."""
    return (2 * numerator + denominator) // (2 * denominator)
