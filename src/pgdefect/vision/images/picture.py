"""An image that is in memory already: an array, or the bytes of a file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pgdefect.core.errors import ImageError
from pgdefect.vision.images.gray_scale import GrayScale
from pgdefect.vision.images.image import MAX_PIXELS, ImageFile, load_image
from pgdefect.vision.images.pixels import to_rgb

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Picture", "picture_from_bytes", "picture_from_pillow", "picture_of"]


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
        raise _wrong_size(name, (shape[0], shape[1]))
    rgb = np.repeat(pixels[:, :, None], 3, axis=2) if pixels.ndim == 2 else pixels
    rgb = np.ascontiguousarray(rgb)
    return _picture(name, rgb, rgb.tobytes())


def picture_from_bytes(data: bytes, name: str = "bytes", scale: GrayScale | None = None) -> Picture:
    """An image from the bytes of its file, with the gray scale of its category.

    Raises:
        ImageError: where they cannot be decoded, or do not fit the scale.
    """
    return _picture(name, load_image(data, scale), data)


def picture_from_pillow(
    image: Image, name: str = "Pillow image", scale: GrayScale | None = None
) -> Picture:
    """A Pillow image as it is, by the rules for files: transparency lies over black, 16-bit
    values follow the category's gray scale. Raises ImageError.
    """
    image.load()
    if not 0 < image.width * image.height <= MAX_PIXELS:
        raise _wrong_size(name, (image.height, image.width))
    rgb = np.ascontiguousarray(to_rgb(image, name, scale)[0])
    return _picture(name, rgb, rgb.tobytes())


def _wrong_size(name: str, size: tuple[int, int]) -> ImageError:
    return ImageError(f"{name} has {size[0]} x {size[1]} pixels, and 1 to {MAX_PIXELS:,} can be")


def _picture(name: str, pixels: npt.NDArray[np.uint8], data: bytes) -> Picture:
    digest = hashlib.sha256(data).hexdigest()
    return Picture(
        ImageFile(Path(name), digest, len(data), pixels.shape[1], pixels.shape[0]), pixels
    )
