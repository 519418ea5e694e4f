"""When a photograph was taken, by its EXIF data."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

from pgdefect.core.errors import ImageError
from pgdefect.vision.images.image import open_image

__all__ = ["exif_time"]

_EXIF_IFD = 0x8769
_ORIGINAL, _ORIGINAL_OFFSET, _CHANGED = 0x9003, 0x9011, 0x0132


def exif_time(path: Path | str) -> datetime | None:
    """DateTimeOriginal of an image file, else DateTime; None where it has neither.

    With its UTC offset where the camera recorded one (OffsetTimeOriginal); else without.
    Raises ImageError for a file that cannot be opened, and for a time that is none.
    """
    image = open_image(path)
    try:
        tags = image.getexif()
        details = tags.get_ifd(_EXIF_IFD)
    except Exception as error:  # Pillow documents no closed set for damaged blocks
        raise ImageError(f"{str(path)!r} has damaged EXIF data: {error}") from error
    said = details.get(_ORIGINAL) or tags.get(_CHANGED)
    if not isinstance(said, str) or not said.strip(" \0:"):
        return None
    try:
        taken = datetime.strptime(said.strip(" \0"), "%Y:%m:%d %H:%M:%S")
    except ValueError as error:
        raise ImageError(
            f"{str(path)!r} has the EXIF time {said!r}, which is none; it is written as "
            "2026:05:04 07:30:00"
        ) from error
    offset = details.get(_ORIGINAL_OFFSET) if details.get(_ORIGINAL) else None
    return taken if offset is None else taken.replace(tzinfo=_zone(str(offset), path))


def _zone(offset: str, path: Path | str) -> timezone:
    text = offset.strip(" \0")
    if text in ("Z", "+00:00", "-00:00"):
        return UTC
    try:
        sign = {"+": 1, "-": -1}[text[0]]
        hours, minutes = text[1:].split(":")
        return timezone(sign * timedelta(hours=int(hours), minutes=int(minutes)))
    except (KeyError, IndexError, ValueError) as error:
        raise ImageError(
            f"{str(path)!r} has the EXIF time offset {offset!r}, which is none; it is written as "
            "+02:00"
        ) from error
