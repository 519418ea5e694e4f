"""Which images are on disk, and what their place or a manifest says of them.

Three layouts are recognised:

mvtec     ``train/good``, ``test/good``, ``test/<defect type>`` and
          ``ground_truth/<defect type>/<stem>_mask.png`` (or ``<stem>.png``; any image suffix)
flat      any other folder: every image in it and below, a normal training image unless the
          caller says otherwise
manifest  a CSV file in UTF-8, separated by comma, semicolon or tab, with the columns path
          (relative to the manifest), split, label, defect_type, group, mask; every further
          named column becomes an attribute

Only names are read here, never the images. What is skipped is said in `Dataset.problems`.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

from pgdefect.core.errors import DatasetError, UsageError
from pgdefect.vision.images.csv_table import COLUMNS, Row, read_table
from pgdefect.vision.images.image import IMAGE_SUFFIXES

__all__ = ["Dataset", "ImageRecord", "cell_value", "scan", "scan_categories", "time_of"]

LABELS = dict.fromkeys(("normal", "good", "0"), "normal")
LABELS |= dict.fromkeys(("anomalous", "defective", "1"), "anomalous")
SPLITS = ("train", "test", "production")

_NO_DEFECT = ("", "good", "none", "normal")
MAX_INDEXED_BYTES = 2000
"""The longest path, defect type or group, in UTF-8: an index of Postgres's holds no longer one."""
_LAYOUT_FOLDERS = ("train", "test", "ground_truth")
_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"-?((0|[1-9][0-9]{0,17})(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,2})?")


@dataclass(frozen=True)
class ImageRecord:
    """One image. Paths are POSIX, relative to the data set's root; `label` is "normal",
    "anomalous" or None where nobody said; `attributes` holds str, int and float; `taken_at` has
    a time zone.
    """

    path: str
    split: str
    label: str | None
    defect_type: str | None = None
    mask_path: str | None = None
    group: str | None = None
    attributes: dict[str, Any] = field(default_factory=dict, hash=False)
    taken_at: datetime | None = None


@dataclass(frozen=True)
class Dataset:
    """The records in order of their paths, under the absolute folder `root`; `problems` has
    a line for whatever was skipped; `layout` is "mvtec", "flat" or "manifest".
    """

    root: Path
    records: tuple[ImageRecord, ...]
    layout: str
    problems: tuple[str, ...]


def scan(
    path: Path | str,
    *,
    groups: Path | str | None = None,
    split: str | None = None,
    label: str | None = None,
) -> Dataset:
    """List the images of a folder or a manifest.

    `groups` is a CSV file with the columns path (relative to the data set's root) and group;
    it overrides the manifest's group column. Without it, a ``groups.csv`` in the root fills
    in what the manifest leaves open. `split` and `label` are for a flat folder; a test split
    without a label is unlabelled, an anomalous label without a split is test.
    Raises DatasetError where nothing usable is found, UsageError for `split` or `label` that
    are unknown or do not fit the layout.
    """
    top = Path(os.path.abspath(path))
    problems: list[str] = []
    kind = _kind(top)
    if kind == "nothing":
        raise DatasetError(f"{str(top)!r} does not exist or may not be read. Check the path.")
    if kind == "other" or (kind == "file" and _has_image_suffix(top.name)):
        raise DatasetError(f"{str(top)!r} is neither a folder nor a manifest. Name one of these.")
    if kind == "file":
        root, layout = top.parent, "manifest"
        records = _manifest_records(top, problems)
        sought = "no row names an image that exists"
    elif _is_category(top):
        root, layout = top, "mvtec"
        records = _mvtec_records(top, problems)
        sought = "no image in train/good and test/<defect type>"
    else:
        root, layout = top, "flat"
        if categories := _categories(top):
            raise DatasetError(
                f"{str(top)!r} holds {len(categories)} categories ({', '.join(categories)}), "
                "not one. Name one of these folders, or ingest all of them."
            )
        records = _flat_records(top, split, label, problems)
        sought = f"no file with a suffix of {' '.join(sorted(IMAGE_SUFFIXES))}"
    if layout != "flat" and (split, label) != (None, None):
        raise UsageError(
            f"{str(top)!r} says itself what is train or test, normal or anomalous. "
            "Give split and label only with a plain folder of images."
        )
    if not records:
        skipped = "".join(f" {problem}." for problem in problems[:3])
        raise DatasetError(f"{str(top)!r} has no images: {sought}.{skipped}")
    if groups is not None:
        _add_groups(records, Path(os.path.abspath(groups)), problems, override=True)
    elif os.path.lexists(root / "groups.csv"):
        _add_groups(records, root / "groups.csv", problems, override=False)
    records.sort(key=lambda record: record.path)
    return Dataset(root, tuple(records), layout, tuple(problems))


def scan_categories(root: Path | str) -> dict[str, Path]:
    """Every category folder (``mvtec`` layout) directly under `root`, by name, sorted.

    Raises DatasetError where `root` is no folder or has none.
    """
    top = Path(os.path.abspath(root))
    if _kind(top) != "folder":
        raise DatasetError(f"{str(top)!r} is not a folder. Name the folder of the categories.")
    categories = _categories(top)
    if not categories:
        wanted = "<category>/train/good or <category>/test/<defect type>"
        raise DatasetError(f"{str(top)!r} has no category: no folder {wanted}.")
    return categories


def _kind(path: str | os.PathLike[str]) -> str:
    """Return "folder", "file", "other" (a pipe, say) or "nothing" (also a broken link)."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return "nothing"
    return "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "other"


def _categories(root: Path) -> dict[str, Path]:
    folders = {e.name: Path(e.path) for e in _entries(root) if not _unstorable(e.name)}
    return {name: folder for name, folder in folders.items() if _is_category(folder)}


def _is_category(folder: Path) -> bool:
    types = _entries(folder / "test", [])  # one that cannot be read is reported by the walk
    return any(_kind(f) == "folder" for f in (folder / "train" / "good", *types))


def _entries(folder: Path, problems: list[str] | None = None) -> list[os.DirEntry[str]]:
    """List a folder by name, without hidden entries and macOS leftovers; [] if it is none."""
    if _kind(folder) != "folder":
        return []
    try:
        with os.scandir(folder) as found:
            entries = [e for e in found if not e.name.startswith((".", "__MACOSX"))]
    except OSError as error:
        if problems is None:
            raise DatasetError(f"{str(folder)!r} cannot be read: {error}.") from error
        problems.append(f"{str(folder)!r} cannot be read: {error.strerror}; skipped")
        return []
    return sorted(entries, key=lambda entry: entry.name)


def _walk(root: Path, start: str, problems: list[str]) -> Iterator[str]:
    """Paths relative to `root` of all images below `root/start`.

    Links to folders are followed after the real folders, and no folder is entered twice, so
    a loop ends and a file reached both ways keeps its real path.
    """
    seen: set[str] = set()
    real, linked = [start], list[str]()
    while real or linked:
        here = real.pop() if real else linked.pop(0)
        folder = os.path.realpath(root / here)
        if folder in seen:
            continue
        seen.add(folder)
        for entry in _entries(root / here, problems):
            relative = f"{here}/{entry.name}" if here else entry.name
            kind = _kind(entry.path)
            if kind == "nothing" and entry.is_dir(follow_symlinks=False):
                problems.append(f"{relative!r} may not be entered; skipped")
                continue
            if kind != "folder" and not _has_image_suffix(entry.name):
                continue
            if _unstorable(relative):
                problems.append(f"{relative!r} is not valid UTF-8; skipped, rename it")
            elif kind == "file" and _too_long(relative):
                problems.append(f"{relative!r} is longer than {MAX_INDEXED_BYTES} bytes; skipped")
            elif kind == "folder":
                (linked if entry.is_symlink() else real).append(relative)
            elif kind == "file":
                yield relative
            else:
                problems.append(f"{relative!r} is a broken link or no regular file; skipped")


def _has_image_suffix(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _unstorable(text: str) -> bool:
    """Whether a file name is not valid UTF-8, which a Postgres text column cannot hold."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def _too_long(text: str) -> bool:
    return len(text.encode()) > MAX_INDEXED_BYTES


def _flat_records(
    root: Path, split: str | None, label: str | None, problems: list[str]
) -> list[ImageRecord]:
    if split is not None and split not in SPLITS:
        raise UsageError(f"Unknown split {split!r}. Choose one of: {', '.join(SPLITS)}.")
    if label is not None and label not in LABELS:
        raise UsageError(f"Unknown label {label!r}. Choose one of: {', '.join(LABELS)}.")
    meaning = LABELS[label] if label is not None else None if split == "test" else "normal"
    split = split or ("test" if meaning == "anomalous" else "train")
    return [ImageRecord(path, split, meaning) for path in _walk(root, "", problems)]


def _mvtec_records(root: Path, problems: list[str]) -> list[ImageRecord]:
    records: list[ImageRecord] = []
    for entry in _entries(root):
        if _kind(entry.path) == "folder" and entry.name not in _LAYOUT_FOLDERS:
            problems.append(f"{entry.name!r} is none of {', '.join(_LAYOUT_FOLDERS)}; skipped")
    for split in SPLITS:
        for entry in _entries(root / split, problems):
            folder = f"{split}/{entry.name}"
            if _kind(entry.path) != "folder":
                if _has_image_suffix(entry.name):
                    problems.append(f"{folder!r} is not in the folder of a type; skipped")
            elif _unstorable(entry.name):
                problems.append(f"{folder!r} is not valid UTF-8; skipped, rename it")
            elif entry.name == "good":
                paths = _walk(root, folder, problems)
                records += (ImageRecord(path, split, "normal") for path in paths)
            elif split == "train":
                problems.append(f"{folder!r}: only train/good is read; skipped")
            else:
                records += _defective_records(root, entry.name, problems)
    return records


def _defective_records(root: Path, defect_type: str, problems: list[str]) -> list[ImageRecord]:
    images, truth = f"test/{defect_type}", f"ground_truth/{defect_type}"
    masks: dict[str, str] = {}
    for path in sorted(_walk(root, truth, problems)):
        masks.setdefault(os.path.splitext(path)[0].removeprefix(truth), path)
    records, used = [], set()
    for path in _walk(root, images, problems):
        stem = os.path.splitext(path)[0].removeprefix(images)
        mask = masks.get(f"{stem}_mask") or masks.get(stem)
        used.add(mask)
        records.append(ImageRecord(path, "test", "anomalous", defect_type, mask))
    lacking = [record.path for record in records if record.mask_path is None]
    if masks and lacking:
        problems.append(
            f"{len(lacking)} images in {images!r} have no mask in {truth!r}, {min(lacking)!r} first"
        )
    problems += (f"{m!r} is the mask of no image" for m in masks.values() if m not in used)
    return records


def _manifest_records(manifest: Path, problems: list[str]) -> list[ImageRecord]:
    root = manifest.parent
    records: list[ImageRecord] = []
    lines: dict[str, int] = {}
    for row in read_table(manifest, ("path",)):
        path = _inside(row, "path", root)
        if path is None:
            row.fail("no path. Fill in the image's path, relative to the manifest.")
        if path in lines:
            row.fail(f"{path!r} is already on line {lines[path]}. Keep one of the two.")
        if _too_long(path):
            row.fail(f"a path of more than {MAX_INDEXED_BYTES} bytes. Give the file a shorter one.")
        lines[path] = row.line
        record = _manifest_record(row, path, root, problems)
        if _kind(root / path) == "file":
            records.append(record)
        else:
            problems.append(f"{manifest.name} line {row.line}: no file {path!r}; skipped")
    return records


def _manifest_record(row: Row, path: str, root: Path, problems: list[str]) -> ImageRecord:
    cells = row.cells
    given = cells.get("label", "")
    if given and given.lower() not in LABELS:
        row.fail(f"unknown label {given!r}. Use one of: {', '.join(LABELS)}, or leave it empty.")
    label = LABELS[given.lower()] if given else None
    named = cells.get("defect_type", "")
    defect_type = None if named.lower() in _NO_DEFECT else named
    if defect_type is not None:
        if label == "normal":
            row.fail(f"label {given!r} but defect type {named!r}. Empty one of the two.")
        label = "anomalous"
    split = cells.get("split", "").lower() or ("train" if label == "normal" else "test")
    if split not in SPLITS:
        row.fail(f"unknown split {cells['split']!r}. Use one of: {', '.join(SPLITS)}.")
    mask = _inside(row, "mask", root)
    if mask is not None and _kind(root / mask) != "file":
        problems.append(f"{row.file.name} line {row.line}: no mask {mask!r}; left out")
        mask = None
    for column in ("defect_type", "group"):
        if _too_long(cells.get(column, "")):
            row.fail(f"{column} has more than {MAX_INDEXED_BYTES} bytes. Shorten it.")
    attributes = {k: cell_value(v) for k, v in cells.items() if v and k not in COLUMNS}
    group = cells.get("group") or None
    taken_at = time_of(row)
    return ImageRecord(path, split, label, defect_type, mask, group, attributes, taken_at)


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
            "2026-05-04T07:30:00+02:00."
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
            return relative
    row.fail(f"{column} {cell!r} is outside {str(root)!r}. Move the manifest above its images.")


def cell_value(text: str) -> str | int | float:
    """Parse quantities; leading zeros or over 18 digits make a serial number, kept as text."""
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


def _add_groups(
    records: list[ImageRecord], file: Path, problems: list[str], *, override: bool
) -> None:
    known = {record.path for record in records}
    groups: dict[str, tuple[str, int]] = {}
    for row in read_table(file, ("path", "group")):
        path, group = os.path.normpath(row.cells.get("path", "")), row.cells.get("group", "")
        if path not in known:
            problems.append(f"{file.name} line {row.line}: no image {path!r} in the data set")
            continue
        if _too_long(group):
            row.fail(f"group has more than {MAX_INDEXED_BYTES} bytes. Shorten it.")
        if path in groups and groups[path][0] != group:
            row.fail(f"{path!r} has another group on line {groups[path][1]}. Keep one of the two.")
        groups[path] = group, row.line
    for index, record in enumerate(records):
        group, _ = groups.get(record.path, ("", 0))
        if group and (override or record.group is None):
            records[index] = replace(record, group=group)
