"""Ground-truth masks as people draw them: which pixels of an image are defective."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pgdefect.core.errors import ImageError
from pgdefect.vision.images.image import decoded, orientation_of, oriented

__all__ = ["MASK_THRESHOLD", "load_mask", "looks_like_mask"]

MASK_THRESHOLD = 128
"""Of 0 to 255, from which on a pixel of an anti-aliased mask is defective."""

_MAX_CODES = 16
"""Masks of more values than these are no numbers of classes."""
_NEAR = 12
"""How far from black or white a pixel of a lossy mask may lie."""
_LOSSY = ("JPEG", "WEBP")

Bool = npt.NDArray[np.bool_]


def load_mask(
    path: Path | str, size: tuple[int, int] | None = None, *, image: Path | str | None = None
) -> Bool:
    """Load a ground-truth mask: True where the pixel is defective.

    Masks count as drawn: anti-aliased ones from half on (128 of 255), numbers of classes
    (0 and 1, or 0, 1, 2 …) and palettes wherever they are not background. A folder is the union
    of the masks in it.

    Args:
        path: the mask, or a folder of masks.
        size: `(height, width)` of the image it belongs to, as a viewer shows it.
        image: that image's file: a mask that was drawn on the pixels as they are stored is
            turned as its EXIF orientation turns the image.

    Returns:
        bool `(height, width)`.

    Raises:
        ImageError: it cannot be read, or the sizes differ.
    """
    if os.path.isdir(path):
        names = sorted(name for name in os.listdir(path) if not name.startswith("."))
        if not names:
            raise ImageError(f"{str(path)!r} is a folder without masks in it. Draw the mask again")
        parts = [load_mask(os.path.join(path, name), size, image=image) for name in names]
        if len({part.shape for part in parts}) > 1:
            raise ImageError(
                f"the masks in {str(path)!r} are not of one size; export them at the size of "
                "their image"
            )
        return np.asarray(np.logical_or.reduce(parts), dtype=np.bool_)
    mask = _marked(path)
    if size is not None and mask.shape != tuple(size):
        turned = orientation_of(image) if image is not None and mask.shape[::-1] == size else 1
        if turned in (5, 6, 7, 8):
            return oriented(mask, turned)
        raise ImageError(
            f"the mask {str(path)!r} has {mask.shape[0]} rows and {mask.shape[1]} columns, its "
            f"image {size[0]} and {size[1]}. Export the mask at the size of its image"
        )
    return mask


def looks_like_mask(path: Path | str) -> bool | None:
    """Whether a file holds a mask and no photograph: two values, or a few flat ones.

    None where it cannot be read.
    """
    try:
        values = _values(path)[0]
    except ImageError:
        return None
    if values.max() == values.min():
        return bool(values.min() == 0)
    counts = np.bincount(values.reshape(-1), minlength=256)
    if np.count_nonzero(counts) <= 3:
        return True
    white = int(values.max())
    near = int(counts[: _NEAR + 1].sum() + counts[max(white - _NEAR, 0) : white + 1].sum())
    return bool(near >= 0.98 * values.size and white >= MASK_THRESHOLD)


def _values(path: Path | str) -> tuple[npt.NDArray[np.uint8], bool]:
    """A mask's values `(height, width)`, 0 for background; and whether it is lossy."""
    image, _ = decoded(path)
    lossy = image.format in _LOSSY
    if image.mode in ("P", "PA") and not lossy:
        return oriented(_from_palette(image), orientation_of(image)), False
    if image.mode.startswith("I") or image.mode == "F":
        values = np.nan_to_num(np.asarray(image).astype(np.float64))
        if (high := float(values.max())) > 255:
            values = values * (255 / (65535 if high <= 65535 else high))
        elif 0 < high <= 1 and image.mode == "F":
            values = values * 255
        return oriented(np.rint(values.clip(0, 255)).astype(np.uint8), orientation_of(image)), lossy
    if image.has_transparency_data:
        rgba = np.array(image.convert("RGBA"))
        colors, alpha = rgba[..., :3].max(axis=2), rgba[..., 3]
        if alpha.any():
            drawn = np.minimum(colors, alpha)
            # Drawn in black, on nothing.
            colors = drawn if colors.any() or alpha.min() == alpha.max() else alpha
        return oriented(colors, orientation_of(image)), lossy
    if image.mode in ("1", "L"):
        return oriented(np.asarray(image.convert("L")), orientation_of(image)), lossy
    return oriented(np.array(image.convert("RGB")).max(axis=2), orientation_of(image)), lossy


def _from_palette(image: Any) -> npt.NDArray[np.uint8]:
    """By color where there is black and something else, else by number: 0 is background."""
    numbers = np.asarray(image.getchannel(0) if image.mode == "PA" else image)
    colors = np.array(image.convert("RGB")).max(axis=2)
    if colors.any() and not colors.all():
        return np.asarray(colors, dtype=np.uint8)
    return np.where(numbers == 0, 0, 255).astype(np.uint8)


def _marked(path: Path | str) -> Bool:
    values, lossy = _values(path)
    if lossy:
        return np.asarray(values >= MASK_THRESHOLD)
    if 0 < (lowest := values.min()) < values.max():
        values = values - lowest  # a background that is not black
    if values.max() < MASK_THRESHOLD or _has_flat_codes(values):
        return np.asarray(values > 0)
    return np.asarray(values >= MASK_THRESHOLD)


def _has_flat_codes(values: npt.NDArray[np.uint8]) -> bool:
    """Whether areas are filled with a low value: a number of a class, and no softened border."""
    low = (values > 0) & (values < MASK_THRESHOLD)
    if min(values.shape) < 3 or not low.any():
        return False
    if np.count_nonzero(np.bincount(values.reshape(-1), minlength=256)) > _MAX_CODES:
        return False
    middle = values[1:-1, 1:-1]
    flat = low[1:-1, 1:-1].copy()
    for down in range(3):
        for right in range(3):
            height, width = middle.shape
            flat &= values[down : down + height, right : right + width] == middle
    return bool(flat.any())
