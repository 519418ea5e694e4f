"""What may be inspected: the path of a file, its bytes, an array, or a Pillow image."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pgdefect.core.errors import UsageError
from pgdefect.vision.images.picture import (
    Picture,
    picture_from_bytes,
    picture_from_pillow,
    picture_of,
)

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

PathLike: TypeAlias = str | os.PathLike[str]
Image: TypeAlias = "PathLike | bytes | NDArray[np.uint8] | PillowImage"
"""A file's path; an image file's bytes; uint8 `(height, width)` gray or `(height, width, 3)` RGB;
a Pillow image."""


def is_path(image: Any) -> bool:
    """Whether it names a file, instead of being an image in memory."""
    return isinstance(image, str | os.PathLike)


def in_memory(
    image: Any, name: str | None = None, scale: Mapping[str, float | None] | None = None
) -> Picture:
    """Pixels and fingerprint of an image in memory; scale: the gray scale of its category.

    Raises:
        ImageError: it cannot be decoded, or has another shape or type.
        UsageError: it is no image at all.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        return picture_from_bytes(bytes(image), name or "bytes", scale)
    if isinstance(image, np.ndarray):
        return picture_of(image, name or "array")
    if hasattr(image, "convert") and hasattr(image, "getbands"):
        return picture_from_pillow(image, name or "Pillow image", scale)
    raise UsageError(
        "an image is a path, the bytes of a file, a NumPy array or a Pillow image, not "
        f"{type(image).__name__}"
    )
