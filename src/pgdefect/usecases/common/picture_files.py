"""Files for pictures: where they go, what they are called, and the mask that belongs to one."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from pgdefect.core.errors import ImageError, UsageError
from pgdefect.pictures.render import BoolArray, save_png, subject_of
from pgdefect.vision.images.masks import load_mask

if TYPE_CHECKING:
    from PIL.Image import Image


MAX_NAME = 255
"""Bytes that file systems allow a name."""


def writable_folder(folder: Path) -> None:
    """Make a folder for pictures, before the work whose result they show.

    Raises:
        UsageError: where it cannot be made or written to.
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


def save_picture(picture: Image, path: Path, *, subject: str | None = None) -> Path:
    """Write a PNG. Raises UsageError where that cannot be."""
    try:
        return save_png(picture, path, subject=subject)
    except OSError as error:
        raise UsageError(
            f"the picture {str(path)!r} cannot be written: {error.strerror}. Name another place"
        ) from error


def ground_truth(
    path: str | None, size: tuple[int, int], failed: list[tuple[str, str]], image: str
) -> BoolArray | None:
    """The mask to outline in an image of this size `(height, width)`; None where there is none.

    Path and reason of one that does not fit, or cannot be read, go to `failed`.

    Args:
        image: the image's file, whose orientation may be that of the mask.
    """
    if path is None or not os.path.exists(path):
        return None
    try:
        return load_mask(path, size, image=image)
    except ImageError as error:
        failed.append((path, str(error)))
        return None


def save_picture_of(photograph: str, picture: Image, folder: Path) -> Path:
    """Write a PNG of a photograph into a folder; returns where.

    It is called after the photograph and its folder, ``good_1.png``. Where a file of that name is
    there that was not made of this photograph (same path, same content), a digest is added, so that
    no other's picture is overwritten, whichever run made it. The photograph's own is.

    Raises:
        UsageError: where it cannot be written.
    """
    path = Path(photograph)
    name = f"{path.parent.name}_{path.stem}" if path.parent.name else path.stem
    subject = _subject(photograph)
    target = folder / f"{name}.png"
    too_long = len(os.fsencode(target.name)) > MAX_NAME
    if too_long or (os.path.lexists(target) and subject_of(target) != subject):
        while len(os.fsencode(name)) > MAX_NAME - 20:
            name = name[:-1]
        target = folder / f"{name}-{subject[:12]}.png"
    return save_picture(picture, target, subject=subject)


def _subject(photograph: str) -> str:
    """A digest of a photograph's path and content."""
    digest = hashlib.sha256(os.fsencode(os.path.abspath(photograph)) + b"\0")
    with open(photograph, "rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
