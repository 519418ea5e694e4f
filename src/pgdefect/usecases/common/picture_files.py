"""Files for pictures: where they go, what they are called, and the mask that belongs to one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pgdefect.core.errors import ImageError, UsageError
from pgdefect.pictures.render import BoolArray, save_png
from pgdefect.vision.images.masks import load_mask

if TYPE_CHECKING:
    from PIL.Image import Image


def writable_folder(folder: Path) -> None:
    """Make a folder for pictures, before the work whose result they show.

    Raises UsageError where it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = "" if os.access(folder, os.W_OK | os.X_OK) else "permission denied"
    except OSError as error:
        reason = str(error.strerror).lower()
    if reason:
        raise UsageError(
            f"pictures cannot be written to {str(folder)!r}: {reason}. Name another folder"
        )


def save_picture(picture: Image, path: Path) -> Path:
    """Write a PNG. Raises UsageError where that cannot be."""
    try:
        return save_png(picture, path)
    except OSError as error:
        raise UsageError(
            f"the picture {str(path)!r} cannot be written: {error.strerror}. Name another place"
        ) from error


def ground_truth(
    path: str | None, size: tuple[int, int], failed: list[tuple[str, str]], image: str
) -> BoolArray | None:
    """The mask to outline in an image of this size `(height, width)`; None where there is none.

    image: the image's file, whose orientation may be that of the mask.

    Path and reason of one that does not fit, or cannot be read, go to `failed`.
    """
    if path is None or not os.path.exists(path):
        return None
    try:
        return load_mask(path, size, image=image)
    except ImageError as error:
        failed.append((path, str(error)))
        return None


def unique_names(paths: Sequence[str]) -> list[str]:
    """A file name without suffix for each image: its folder's and its own, numbered if taken."""
    taken: dict[str, None] = {}
    for text in paths:
        path = Path(text)
        name = f"{path.parent.name}_{path.stem}" if path.parent.name else path.stem
        unique, number = name, 2
        while unique in taken:
            unique, number = f"{name}_{number}", number + 1
        taken[unique] = None
    return list(taken)
