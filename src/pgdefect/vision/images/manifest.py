"""Manifests and ``parts.csv``: tables that say what images are."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, tzinfo
from functools import lru_cache
from pathlib import Path, PureWindowsPath

from pgdefect.core.errors import DatasetError
from pgdefect.core.types import FolderReading
from pgdefect.core.wording import option
from pgdefect.vision.images.csv_table import COLUMNS, Row, read_table
from pgdefect.vision.images.folder_tree import MAX_INDEXED_BYTES, kind_of, too_long
from pgdefect.vision.images.folder_words import LABEL_WORDS, NO_DEFECT, label_of, meaning_of
from pgdefect.vision.images.layouts import ImageRecord
from pgdefect.vision.images.more_words import words

__all__ = [
    "SPLITS",
    "add_parts",
    "cell_value",
    "existing_path",
    "manifest_root",
    "read_manifest",
    "rows_of",
    "time_of",
]

SPLITS = ("train", "test", "production")
_OBJECT = "object"
"""VisA's column for the category; its tables list all of them."""
_LABEL_COLUMNS = words(
    "class target labels is_defect is_defective is_anomaly is_anomalous anomaly anomalous "
    "defective verdict ground_truth_label gt_label"
)
"""Columns that are read as labels where there are none so called and all cells say one."""
_LOGICAL = {"true": "anomalous", "false": "normal", "yes": "anomalous", "no": "normal"}
"""Answers to whether there is a defect."""
_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"-?((0|[1-9][0-9]{0,17})(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,2})?")


def manifest_root(manifest: Path) -> Path:
    """The folder that a manifest's paths are relative to: its own, or, as with VisA's
    ``split_csv/1cls.csv``, the one around it where the first of them are only there.
    """
    here = manifest.parent
    for row, _ in zip(read_table(manifest, ("path",)), range(20), strict=False):
        path = row.cells.get("path", "")
        if path and not os.path.isabs(path) and ".." not in Path(path).parts:
            if _found(here, path):
                return here
            if _found(here.parent, path):
                return here.parent
    return here


def read_manifest(
    manifest: Path, root: Path, category: str | None, problems: list[str]
) -> list[ImageRecord]:
    """The rows whose image exists; a line for every other goes to `problems`.

    Args:
        category: with a table of several products (a column ``object``), which one. Raises
            DatasetError, naming the line, for a row that cannot be understood.
    """
    records: list[ImageRecord] = []
    lines: dict[str, int] = {}
    read_as: dict[str, list[str]] = {}
    rows = _of_category(list(read_table(manifest, ("path",))), category, problems)
    for row in _with_labels(rows, problems):
        path = _inside(row, "path", root)
        if path is None:
            row.fail("no path. Fill in the image's path, relative to the manifest")
        if too_long(path):
            row.fail(f"a path of more than {MAX_INDEXED_BYTES} bytes. Give the file a shorter one")
        found, cause = existing_path(root, path)
        if found in lines:
            row.fail(f"{found!r} is already on line {lines[found]}. Keep one of the two")
        lines[found] = row.line
        record = _record(row, found, root, problems)
        if kind_of(root / found) == "file":
            records.append(record)
            if cause:
                read_as.setdefault(cause, []).append(path)
        else:
            why = f"; {cause}" if cause else ""
            problems.append(f"{manifest.name} line {row.line}: no file {path!r}; skipped{why}")
    for cause, paths in read_as.items():
        count = f"{len(paths)} paths" if len(paths) > 1 else f"{paths[0]!r}"
        problems.append(f"{manifest.name}: {count}: {cause}; read as the files that there are")
    return records


def rows_of(records: Sequence[ImageRecord]) -> list[FolderReading]:
    """What a manifest's images are taken as, by folder."""
    counts: Counter[tuple[str, str]] = Counter()
    for record in records:
        kind = f" ({record.defect_type})" if record.defect_type else ""
        taken_as = f"{record.label or 'unlabeled'}{kind}, {record.split}"
        counts[os.path.dirname(record.path) or ".", taken_as] += 1
    return [FolderReading(*key, count) for key, count in sorted(counts.items())]


def _of_category(rows: list[Row], category: str | None, problems: list[str]) -> list[Row]:
    named = Counter(row.cells.get(_OBJECT, "") for row in rows)
    if len(named) < 2:
        return rows
    wanted = next((n for n in named if category and n.casefold() == category.casefold()), None)
    if wanted is None:
        names = ", ".join(sorted(name for name in named if name))
        raise DatasetError(
            f"{str(rows[0].file)!r} lists {len(named)} products under {_OBJECT!r} ({names}), and "
            f"the category is {category!r}. Ingest it once for each, with {option('category')} of "
            "that name"
        )
    problems.append(f"{len(rows) - named[wanted]} rows are of other products than {wanted!r}")
    return [row for row in rows if row.cells.get(_OBJECT, "") == wanted]


def _with_labels(rows: list[Row], problems: list[str]) -> list[Row]:
    """The rows, with a column that holds labels under another name taken for them, and said."""
    columns = list(dict.fromkeys(column for row in rows for column in row.cells))
    if {"label", "defect_type"} & set(columns):
        return rows
    said = {
        column: [_LOGICAL.get(cell.lower(), cell) for row in rows if (cell := row.cells[column])]
        for column in columns
        if column.lower().replace(" ", "_") in _LABEL_COLUMNS
        and all(column in row.cells for row in rows)
    }
    found = [c for c, cells in said.items() if cells and all(_label_in(cell) for cell in cells)]
    if len(found) != 1:
        if said:
            problems.append(
                f"no column label: {', '.join(map(repr, said))} is kept as an attribute, and all "
                "images are unlabeled; call the column with the labels label"
            )
        return rows
    column = found[0]
    problems.append(f"column {column!r} is read as label")
    return [
        row._replace(
            cells={
                **{name: cell for name, cell in row.cells.items() if name != column},
                "label": _LOGICAL.get(row.cells[column].lower(), row.cells[column]),
            }
        )
        for row in rows
    ]


def _label_in(given: str) -> str | None:
    """The label that a cell says, as a table's word or as a folder's."""
    word = meaning_of(given)
    if label_of(given) is not None or not word.certain:
        return label_of(given)
    return word.meaning if word.meaning in ("normal", "anomalous") else None


def _record(row: Row, path: str, root: Path, problems: list[str]) -> ImageRecord:
    cells = row.cells
    given = cells.get("label", "")
    label = _label_in(given)
    if given and label is None:
        row.fail(
            f"unknown label {given!r}. Use one of: {', '.join(LABEL_WORDS)}, or leave it empty"
        )
    named = cells.get("defect_type", "")
    word = meaning_of(named)
    says_normal = bool(named) and word.meaning == "normal" and word.certain
    defect_type = None if says_normal or named.casefold() in NO_DEFECT else named
    if (defect_type is not None and label == "normal") or (says_normal and label == "anomalous"):
        row.fail(f"label {given!r} but defect type {named!r}. Empty one of the two")
    if defect_type is not None:
        label = "anomalous"
    elif says_normal:
        label = "normal"
    split = cells.get("split", "").lower() or ("train" if label == "normal" else "test")
    if split not in SPLITS and meaning_of(split).meaning in ("train", "test"):
        split = meaning_of(split).meaning
    if split not in SPLITS:
        row.fail(f"unknown split {cells['split']!r}. Use one of: {', '.join(SPLITS)}")
    mask = _inside(row, "mask", root)
    if mask is not None:
        found, cause = existing_path(root, mask)
        if kind_of(root / found) not in ("file", "folder"):
            why = f"; {cause}" if cause else ""
            problems.append(f"{row.file.name} line {row.line}: no mask {mask!r}; left out{why}")
        mask = found if kind_of(root / found) in ("file", "folder") else None
    for column in ("defect_type", "part"):
        if too_long(cells.get(column, "")):
            row.fail(f"{column} has more than {MAX_INDEXED_BYTES} bytes. Shorten it")
    attributes = {k: cell_value(v) for k, v in cells.items() if v and k not in COLUMNS}
    part = cells.get("part") or None
    taken_at = time_of(row)
    return ImageRecord(path, split, label, defect_type, mask, part, attributes, taken_at)


def time_of(row: Row, zone: tzinfo | None = None) -> datetime | None:
    """When a table says that the photograph was taken, in ISO 8601; without an offset it is
    in `zone`, the machine's own by default. Raises DatasetError, naming file and line.
    """
    if not (said := row.cells.get("taken_at", "")):
        return None
    try:
        if said.isdigit():
            raise ValueError("a number")
        taken = datetime.fromisoformat(said)
    except ValueError:
        row.fail(
            f"{row.cells['path']!r} has the time {said!r}, which is none. Write it as "
            "2026-05-04T07:30:00+02:00"
        )
    if taken.tzinfo is None:
        taken = taken.replace(tzinfo=zone) if zone else taken.astimezone()
    return taken


def _inside(row: Row, column: str, root: Path) -> str | None:
    """The cell as a normalized path relative to `root`; None where it is empty."""
    cell = row.cells.get(column, "")
    if not cell:
        return None
    for base in (str(root), os.path.realpath(root)):
        relative = os.path.relpath(os.path.join(base, cell), base)
        if relative != "." and relative != ".." and not relative.startswith("../"):
            break
    else:
        row.fail(f"{column} {cell!r} is outside {str(root)!r}. Move the manifest above its images")
    if "\\" in cell and kind_of(root / relative) == "nothing":
        windows = PureWindowsPath(cell)
        if windows.drive or windows.root or ".." in windows.parts:
            row.fail(
                f"{column} {cell!r} is a path of another machine. Write paths relative to the "
                "manifest"
            )
    return relative


def existing_path(root: Path, path: str) -> tuple[str, str]:
    """The path of the file that is meant, and what the given one has wrong.

    Backslashes are read as separators, and letters of another case as the file's own, where that
    names one file.
    """
    if kind_of(root / path) != "nothing":
        return path, ""
    plain = os.path.normpath(path.replace("\\", "/"))
    if plain != path and kind_of(root / plain) != "nothing":
        return plain, "backslashes (\\) separate folders on Windows only"
    found = _found(root, plain)
    if found:
        return found, "upper and lower case differ from the files' names"
    return path, "the backslashes (\\) separate folders on Windows only" if plain != path else ""


def _found(root: Path, path: str) -> str | None:
    """The one path that is called so, but for case and backslashes."""
    here, names = "", path.replace("\\", "/").split("/")
    for name in names:
        alike = _names(str(root / here)).get(name.casefold(), ())
        chosen = name if name in alike else alike[0] if len(alike) == 1 else None
        if chosen is None:
            return None
        here = f"{here}/{chosen}" if here else chosen
    return here


@lru_cache(maxsize=64)
def _listed(folder: str, changed_ns: int) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in os.listdir(folder):
        found.setdefault(name.casefold(), []).append(name)
    return found


def _names(folder: str) -> dict[str, list[str]]:
    try:
        return _listed(folder, os.stat(folder).st_mtime_ns)
    except (OSError, ValueError):
        return {}


def cell_value(text: str) -> str | int | float:
    """Parse quantities; leading zeros or over 18 digits make a serial number, kept as text."""
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


def add_parts(
    records: list[ImageRecord], file: Path, problems: list[str], *, override: bool
) -> None:
    """Say of records which part they show; `override` replaces what they say themselves."""
    known = {record.path for record in records}
    parts: dict[str, tuple[str, int]] = {}
    for row in read_table(file, ("path", "part")):
        path, part = os.path.normpath(row.cells.get("path", "")), row.cells.get("part", "")
        if path not in known:
            plain = os.path.normpath(path.replace("\\", "/"))
            if plain not in known:
                problems.append(f"{file.name} line {row.line}: no image {path!r} in the data set")
                continue
            path = plain
        if too_long(part):
            row.fail(f"part has more than {MAX_INDEXED_BYTES} bytes. Shorten it")
        if path in parts and parts[path][0] != part:
            row.fail(f"{path!r} shows another part on line {parts[path][1]}. Keep one of the two")
        parts[path] = part, row.line
    for index, record in enumerate(records):
        part, _ = parts.get(record.path, ("", 0))
        if part and (override or record.part is None):
            records[index] = replace(record, part=part)
