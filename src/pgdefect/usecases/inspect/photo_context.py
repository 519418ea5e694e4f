"""What is known of production photographs besides their pixels: part, time taken, attributes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from pgdefect.core.attributes import checked_attributes
from pgdefect.core.errors import DatasetError, ImageError, UsageError
from pgdefect.core.wording import option
from pgdefect.usecases.inspect.path_pattern import PathPattern
from pgdefect.vision.images.csv_table import COLUMNS, Row, read_table
from pgdefect.vision.images.exif_time import exif_time
from pgdefect.vision.images.manifest import cell_value, existing_path, time_of

__all__ = [
    "ContextSource",
    "PhotoContext",
    "manifest_files",
    "read_contexts",
]


@dataclass(frozen=True)
class PhotoContext:
    """Of one photograph; taken_at has a time zone."""

    attributes: Mapping[str, Any] = field(default_factory=dict)
    part: str | None = None
    taken_at: datetime | None = None


@dataclass(frozen=True)
class ContextSource:
    """Where contexts come from; a later one goes before an earlier one.

    Attributes:
        attributes: of all photographs of the call.
        exif_time: take the time from each file's EXIF data.
        path_pattern: fields of each path (`PathPattern`).
        manifest: a CSV file with the columns path, part, taken_at; the others are
            attributes.
        time_zone: of times without an offset, as "Europe/Berlin"; the machine's own without it.
    """

    attributes: Mapping[str, Any] = field(default_factory=dict)
    exif_time: bool = False
    path_pattern: str | None = None
    manifest: Path | None = None
    time_zone: str | None = None

    def __bool__(self) -> bool:
        return bool(self.attributes or self.exif_time or self.path_pattern or self.manifest)


def manifest_files(manifest: Path) -> list[Path]:
    """The files that a manifest names, in its order. Raises DatasetError."""
    return [Path(path) for path in _rows(manifest)]


def read_contexts(source: ContextSource, files: Sequence[str]) -> dict[str, PhotoContext]:
    """The context of each file, by its path.

    Raises, before anything is judged: UsageError for a pattern, time zone or attribute that is
    none;
    DatasetError, naming the file, for a path that does not fit, a time that is none, and a file
    that the manifest does not name.
    """
    if not source:
        return {}
    pattern = PathPattern(source.path_pattern) if source.path_pattern is not None else None
    zone = _zone(source.time_zone)
    rows = _rows(source.manifest) if source.manifest is not None else None
    given = checked_attributes(source.attributes)
    contexts = {}
    for file in files:
        attributes, part, taken = dict(given), None, None
        if pattern is not None:
            fields, taken = pattern.read(file)
            part = fields.pop("part", None)
            attributes |= {name: cell_value(text) for name, text in fields.items()}
        if rows is not None:
            row = rows.get(os.path.realpath(file))
            if row is None:
                raise DatasetError(
                    f"{file!r} is not in the manifest {str(source.manifest)!r}; add a line for it, "
                    "or leave it out"
                )
            said = _of_row(row, zone)
            attributes |= said.attributes
            part, taken = said.part or part, said.taken_at or taken
        if taken is None and source.exif_time:
            taken = _by_exif(file)
        if taken is not None and taken.tzinfo is None:
            taken = taken.replace(tzinfo=zone) if zone else taken.astimezone()
        contexts[file] = PhotoContext(attributes, part, taken)
    return contexts


def _rows(manifest: Path) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    for row in read_table(manifest, ("path",)):
        cell = row.cells.get("path", "")
        if not cell:
            row.fail("no path. Fill in the image's path, relative to the manifest.")
        folder = Path(os.path.abspath(manifest.parent))
        path = os.path.realpath(folder / existing_path(folder, cell)[0])
        if path in rows:
            row.fail(f"{cell!r} is already on line {rows[path].line}. Keep one of the two.")
        if (split := row.cells.get("split", "").lower()) not in ("", "production"):
            row.fail(
                f"{cell!r} is of split {split!r}; inspected photographs are production, and "
                "others are recorded with ingest"
            )
        for column in ("label", "defect_type", "mask"):
            if row.cells.get(column):
                row.fail(
                    f"{cell!r} has a {column}; what a photograph shows is said with review, or "
                    "with ingest"
                )
        rows[path] = row
    return rows


def _of_row(row: Row, zone: tzinfo | None) -> PhotoContext:
    attributes = {k: cell_value(v) for k, v in row.cells.items() if v and k not in COLUMNS}
    return PhotoContext(attributes, row.cells.get("part") or None, time_of(row, zone))


def _by_exif(file: str) -> datetime:
    try:
        taken = exif_time(file)
    except ImageError as error:
        raise DatasetError(f"no EXIF time: {error}") from error
    if taken is None:
        raise DatasetError(
            f"{file!r} has no EXIF time; say when it was taken in the manifest or the path, or "
            f"leave out {option('exif_time')}"
        )
    return taken


def _zone(name: str | None) -> tzinfo | None:
    if name is None:
        return None
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, KeyError) as error:
        raise UsageError(
            f"{option('time_zone')} is a name such as Europe/Berlin or UTC, not {name!r}"
        ) from error
