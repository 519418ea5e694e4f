"""An image that is in memory already: an array, or the bytes of a file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pgdefect.core.errors import ImageError
from pgdefect.vision.images.image import MAX_PIXELS, ImageFile, load_image

__all__ = ["Picture", "picture_from_bytes", "picture_of"]


@dataclass(frozen=True)
class Picture:
    """An image in memory: its fingerprint and pixels, uint8 `(height, width, 3)`, RGB.

    The file's path is only a name for it.
    """

    file: ImageFile
    pixels: npt.NDArray[np.uint8] = field(repr=False, compare=False)


def picture_of(pixels: npt.NDArray[Any], name: str = "array") -> Picture:
    """An image from its pixels.

    Args:
        pixels: uint8 `(height, width)` of gray or `(height, width, 3)` of RGB values.
        name: What to call it in results and messages.

    Raises:
        ImageError: another shape or type, no pixels, or too many.
    """
    shape = pixels.shape
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and shape[2] == 3)):
        raise ImageError(
            "an image in memory must be uint8 of shape (height, width) or (height, width, 3), "
            f"not {pixels.dtype} {shape}"
        )
    if not 0 < shape[0] * shape[1] <= MAX_PIXELS:
        raise ImageError(
            f"{name} has {shape[0]} x {shape[1]} pixels, and 1 to {MAX_PIXELS:,} are allowed"
        )
    rgb = np.repeat(pixels[:, :, None], 3, axis=2) if pixels.ndim == 2 else pixels
    rgb = np.ascontiguousarray(rgb)
    return _picture(name, rgb, rgb.tobytes())


def picture_from_bytes(data: bytes, name: str = "bytes") -> Picture:
    """An image from the bytes of its file. Raises ImageError where they cannot be decoded."""
    return _picture(name, load_image(data), data)


def _picture(name: str, pixels: npt.NDArray[np.uint8], data: bytes) -> Picture:
    digest = hashlib.sha256(data).hexdigest()
    return Picture(
        ImageFile(Path(name), digest, len(data), pixels.shape[1], pixels.shape[0]), pixels
    )
