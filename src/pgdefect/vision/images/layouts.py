"""What each folder of a data set holds: normal or anomalous photographs, masks, something else.

One reading serves every layout, for all of them say it by names: of splits (``train``,
``test_public``), labels (``good``, ``OK``, ``Normal``, ``MT_Free``, ``ko``), masks
(``ground_truth``, ``label``) and what merely sorts (``Imgs``, ``Data/Images``). What is left are
defect types where they stand beside normal photographs or below ``test``, and else batches. Where
two readings differ in what would be learned, there is none: `doubts` names the folders.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from pgdefect.core.errors import ImageError
from pgdefect.core.threads import num_cpus
from pgdefect.core.types import FolderReading
from pgdefect.vision.images.folder_tree import FolderTree
from pgdefect.vision.images.folder_words import Meaning, meaning_of
from pgdefect.vision.images.mask_files import MeaningOf, divide, join, match, parents
from pgdefect.vision.images.masks import load_mask
from pgdefect.vision.images.unsaid import doubts_of_files, doubts_of_siblings

__all__ = ["ImageRecord", "Layout", "meanings", "read_layout"]

MANY = 8
"""Sibling folders of one reading that are shown one by one; more are one row."""
SPLIT_WORDS = ("train", "validation", "test")
STRAY = "in no folder of a type"
MARKED_NORMAL = "called normal, and its mask marks something"
LOST_MASK = "the mask of no photograph"


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
    part: str | None = None
    attributes: dict[str, Any] = field(default_factory=dict, hash=False)
    taken_at: datetime | None = None


@dataclass
class Layout:
    """kind: "mvtec" where folders are called after splits, "folders" where after labels alone,
    "masks" where masks alone say what is defective, "flat" where nothing does. doubts: lines about
    folders that could be read in two ways.
    """

    kind: str
    records: list[ImageRecord]
    folders: list[FolderReading]
    doubts: list[str]


@dataclass
class _Place:
    """What a folder's path says; home: the part of it that said so."""

    split: str | None = None
    label: str | None = None
    defect_type: str | None = None
    home: str = ""
    why: str = ""
    stray: str = ""
    doubt: str = ""
    validation: bool = False


def meanings(said: Mapping[str, Meaning]) -> MeaningOf:
    """What folders mean, those of `said` (by name or path, without case) as it says."""
    given = {name.strip("/").casefold(): meaning for name, meaning in said.items()}

    def meaning(above: str, name: str) -> Meaning:
        for key in (join(above, name).casefold(), name.casefold()):
            if key in given:
                return given[key]
        return meaning_of(name).meaning

    return meaning


def read_layout(
    tree: FolderTree,
    meaning: MeaningOf,
    *,
    only_photographs: bool = False,
    split: str | None = None,
    label: str | None = None,
    default_split: str | None = None,
) -> Layout:
    """Read a folder that was listed.

    Args:
        tree: the listing; what is left out is counted there.
        meaning: of folders, see `meanings`.
        only_photographs: tell photographs from masks and no more, as inspecting does.
        split: of all photographs, whatever names say. With it or `label` the layout is flat.
        label: of all photographs, "normal" or "anomalous".
        default_split: of photographs that folders label, where none names a split.
    """
    flat = (split, label) != (None, None)
    _leave_out(tree, meaning)
    divided = divide(tree.root, tree.files, meaning)
    folders = list(divided.photographs)
    if only_photographs or flat:
        places = {folder: _Place(home=folder) for folder in folders}
    else:
        inside = _inside([*folders, *divided.masks], meaning)
        places = {folder: _place(folder, meaning, inside) for folder in folders}
    kind = _kind(places.values())
    if kind == "flat" and (divided.beside or divided.masks):
        kind = "masks"
    _settle(places, kind)
    for place in places.values():
        if place.label is not None:
            place.split = place.split or default_split
    photographs = [
        (join(folder, name), places[folder].label)
        for folder, names in divided.photographs.items()
        for name in names
        if not places[folder].stray
    ]
    found, lost = match(divided.masks, photographs, _with_unnamed(meaning, divided.why))
    masks = found | divided.beside
    records: list[ImageRecord] = []
    rows: Counter[tuple[str, str, str]] = Counter()
    half_marked = {os.path.dirname(path) for path in masks}
    marks = {} if only_photographs or flat else _marks(tree.root, photographs, masks)
    _tell_lost_masks(tree, lost)
    for folder, names in divided.photographs.items():
        place = places[folder]
        if place.stray:
            tree.skip(names, place.stray)
            rows[folder or ".", "left out", place.stray] += len(names)
            continue
        for name in names:
            path = join(folder, name)
            one = _record(path, place, masks, marks, "masks" if folder in half_marked else kind)
            if one is None:
                tree.skip([name], MARKED_NORMAL)
                rows[place.home or ".", "left out", MARKED_NORMAL] += 1
                tree.problems.append(f"{path!r} is {MARKED_NORMAL}: {masks[path]!r}; left out")
                continue
            record, why = (_as_said(one[0], split, label), "as said") if flat else one
            records.append(record)
            rows[place.home or ".", _taken_as(record), why] += 1
    _tell_lacking(tree, records, masks, divided.masks)
    _mask_rows(rows, divided.masks, divided.beside, divided.why, meaning)
    doubts = sorted({place.doubt for place in places.values() if place.doubt})
    if not (only_photographs or flat):
        open_ = {f: names for f, names in divided.photographs.items() if not places[f].label}
        if kind == "flat":
            doubts += doubts_of_siblings(open_, meaning)
        if kind in ("flat", "mvtec"):
            doubts += doubts_of_files(
                {f: n for f, n in open_.items() if places[f].split in (None, "train")}
            )
    return Layout(kind, records, _rows(rows), doubts)


def _with_unnamed(meaning: MeaningOf, unnamed: Mapping[str, str]) -> MeaningOf:
    """What folders mean, those that turned out to hold masks included."""

    def with_unnamed(above: str, name: str) -> Meaning:
        return "masks" if join(above, name) in unnamed else meaning(above, name)

    return with_unnamed


def _leave_out(tree: FolderTree, meaning: MeaningOf) -> None:
    for folder in list(tree.files):
        if any(meaning(above, name) == "skip" for above, name in parents(folder)):
            tree.skip(tree.files.pop(folder), "in a folder that was to be left out")


@dataclass
class _Inside:
    """What the folders directly in one mean; numbered: one of their names has a digit."""

    means: Counter[Meaning] = field(default_factory=Counter)
    names: set[str] = field(default_factory=set)
    good: str = ""
    numbered: bool = False


def _inside(folders: Iterable[str], meaning: MeaningOf) -> dict[str, _Inside]:
    """What lies directly in each folder, of all that leads to pictures."""
    inside: dict[str, _Inside] = defaultdict(_Inside)
    for above, name in {pair for folder in folders for pair in parents(folder)}:
        one, means = inside[above], meaning(above, name)
        one.means[means] += 1
        one.names.add(name.casefold())
        one.numbered |= any(character.isdigit() for character in name)
        if means == "normal":
            one.good = min(one.good or name, name)
    return inside


def _place(folder: str, meaning: MeaningOf, inside: Mapping[str, _Inside]) -> _Place:
    place = _Place(home=folder)
    for above, name in parents(folder):
        here = join(above, name)
        means = meaning(above, name)
        around = {m for m, count in inside[above].means.items() if count > (m == means)}
        if place.label and means in SPLIT_WORDS:
            place.split = place.split or ("test" if means == "test" else "train")
            continue
        if place.label == "anomalous":
            if means == "normal":
                place.doubt = _doubt(here)
            if _is_type_below(above, name, meaning, inside) and place.defect_type == (
                os.path.basename(above)
            ):
                place.defect_type, place.home = name, here
            break
        if place.label == "normal":
            if means in ("anomalous", "defect", "doubtful"):
                place.doubt = _doubt(here)
                break
            continue
        if means in SPLIT_WORDS and place.split is None:
            place.validation = means == "validation"
            place.split, place.home = ("test" if means == "test" else "train"), here
        elif means == "normal" or (means in ("anomalous", "defect") and not _alone(means, around)):
            _take_label(place, means, name, here)
        elif means == "neutral":
            continue
        elif place.split == "test":
            if means in ("doubtful", "normal"):
                place.doubt = _doubt(here)
            _take_label(place, "anomalous", name, here)
        elif "normal" in around and means in ("unknown", "masks", "perhaps masks"):
            if meaning_of(name).certain:
                _take_label(place, "anomalous", name, here)
                place.why = f"beside {inside[above].good!r}"
            else:
                place.doubt = _doubt(here)
            break
        elif means == "unknown" and set(SPLIT_WORDS) & around:
            place.stray = "beside folders of splits, and none itself"
            place.home = here
        elif means in ("doubtful", "defect") or place.split or _labels(around):
            place.doubt = _doubt(here)
    return place


def _alone(means: Meaning, around: set[Meaning]) -> bool:
    """Whether a word for one kind of defect stands where nothing says what is normal: it could be
    the product's name.
    """
    return means == "defect" and not ({"normal", "anomalous"} | set(SPLIT_WORDS)) & around


def _labels(around: set[Meaning]) -> bool:
    return bool({"anomalous", "doubtful"} & around)


def _take_label(place: _Place, means: Meaning, name: str, here: str) -> None:
    place.label = "normal" if means == "normal" else "anomalous"
    place.defect_type = None if means == "normal" else name
    place.home = here
    place.split = place.split or meaning_of(name).split


def _is_type_below(
    above: str, name: str, meaning: MeaningOf, inside: Mapping[str, _Inside]
) -> bool:
    """Whether a folder in one of anomalous images is one of a defect type: ``NG/scratch``."""
    word = os.path.basename(above)
    if meaning_of(word).meaning != "anomalous" or meaning(above, name) == "neutral":
        return False
    around = os.path.dirname(above)
    good = inside.get(join(around, inside[around].good))
    sorts_both = good is not None and name.casefold() in good.names
    return not inside[above].numbered and not sorts_both


def _doubt(here: str) -> str:
    return f"{here!r}: normal photographs, or a type of defect?"


def _kind(places: Iterable[_Place]) -> str:
    splits = any(place.split and not place.stray for place in places)
    labels = any(place.label for place in places)
    return "mvtec" if splits else "folders" if labels else "flat"


def _settle(places: dict[str, _Place], kind: str) -> None:
    """What the other folders leave of those that say nothing themselves."""
    labeled = {above for f, p in places.items() if p.label for above, _ in parents(p.home)}
    for folder, place in places.items():
        if place.label or place.stray or place.doubt or kind == "flat":
            continue
        if folder in labeled:
            place.stray = STRAY
        elif not place.split and kind == "folders" and labeled:
            place.doubt = _doubt(folder or ".") if folder not in labeled else ""


def _marks(
    root: Path, photographs: Iterable[tuple[str, str | None]], masks: Mapping[str, str]
) -> dict[str, bool]:
    """Whether the masks of photographs that are not called anomalous mark anything."""
    asked = [path for path, label in photographs if label != "anomalous" and path in masks]

    def marked(path: str) -> bool | None:
        try:
            return bool(load_mask(root / masks[path]).any())
        except ImageError:
            return None

    with ThreadPoolExecutor(num_cpus(), "pgdefect-masks") as pool:
        found = zip(asked, pool.map(marked, asked), strict=True)
        return {path: marks for path, marks in found if marks is not None}


def _record(
    path: str,
    place: _Place,
    masks: Mapping[str, str],
    marks: Mapping[str, bool],
    kind: str,
) -> tuple[ImageRecord, str] | None:
    """What a photograph is, and why; None where its name and its mask say different things."""
    label = place.label
    why = place.why
    if place.validation and label == "normal":
        why = "validation images are learned from, too"
    defect_type, mask = place.defect_type, masks.get(path)
    if label == "normal":
        return None if marks.get(path) else (ImageRecord(path, place.split or "train", label), why)
    if label is None and path in marks:
        label = "anomalous" if marks[path] else "normal"
        why = f"its mask marks {'something' if marks[path] else 'nothing'}"
        if label == "anomalous" and mask is not None:
            defect_type = _type_of_mask(mask, path)
    elif label is None and kind == "masks":
        label, why = "normal", "has no mask, as others have"
    elif label is None and kind == "flat":
        label, why = "normal", "no folder's name says otherwise"
    elif label is None and place.split == "train":
        label, why = "normal", "for training, and nothing says otherwise"
    split = place.split
    if split is None or (place.validation and label == "anomalous"):
        split = "test" if label == "anomalous" else "train"
    mask = mask if label == "anomalous" else None
    return ImageRecord(path, split, label, defect_type, mask), why


def _type_of_mask(mask: str, path: str) -> str | None:
    """A defect type that only the folder of the mask says: ``masks/crack/001.png``."""
    folder = os.path.dirname(mask)
    if folder == os.path.dirname(path) or not folder:
        return None
    name = os.path.basename(folder)
    found = meaning_of(name)
    return name if found.meaning in ("defect", "unknown") and found.certain else None


def _taken_as(record: ImageRecord) -> str:
    label = record.label or "unlabeled"
    kind = f" ({record.defect_type})" if record.defect_type else ""
    return f"{label}{kind}, {record.split}"


def _tell_lost_masks(tree: FolderTree, lost: list[str]) -> None:
    by_folder: dict[str, list[str]] = defaultdict(list)
    for path in lost:
        by_folder["/".join(path.split("/")[:2]) if path.count("/") > 1 else ""].append(path)
    tree.skip(lost, LOST_MASK)
    for folder, paths in sorted(by_folder.items()):
        if len(paths) <= 3:
            tree.problems += (f"{path!r} is the mask of no image" for path in sorted(paths))
        else:
            tree.problems.append(
                f"{len(paths)} masks in {folder or '.'!r} are of no image, {min(paths)!r} first; a "
                "mask is called like its image, or like it with _mask at the end"
            )


def _tell_lacking(
    tree: FolderTree,
    records: list[ImageRecord],
    masks: Mapping[str, str],
    in_folders: Mapping[str, list[str]],
) -> None:
    """Types of which some images have a mask and others none."""
    by_type: dict[str, list[ImageRecord]] = defaultdict(list)
    for record in records:
        if record.defect_type is not None:
            by_type["/".join(record.path.split("/")[:-1])].append(record)
    for folder, found in sorted(by_type.items()):
        lacking = [record.path for record in found if record.mask_path is None]
        truth = next((r.mask_path for r in found if r.mask_path is not None), None)
        if truth is None or not lacking:
            continue
        where = truth if truth in in_folders else os.path.dirname(truth)
        tree.problems.append(
            f"{len(lacking)} images in {folder!r} have no mask in {where!r}, {min(lacking)!r} first"
        )


def _mask_rows(
    rows: Counter[tuple[str, str, str]],
    masks: Mapping[str, list[str]],
    beside: Mapping[str, str],
    why: Mapping[str, str],
    meaning: MeaningOf,
) -> None:
    for folder, names in masks.items():
        home = folder
        found = list(parents(folder))
        for n, (above, name) in enumerate(found):
            if meaning(above, name) in ("masks", "perhaps masks"):
                home = join(*found[min(n + 1, len(found) - 1)])
                break
        rows[home or ".", "masks", why.get(folder, "")] += len(names)
    for mask in beside.values():
        rows[os.path.dirname(mask) or ".", "masks", "beside their photographs"] += 1


def _rows(counts: Counter[tuple[str, str, str]]) -> list[FolderReading]:
    """In order of folders; many siblings that are read alike are one row."""
    alike: dict[tuple[str, str, str], list[tuple[str, int]]] = defaultdict(list)
    for (folder, taken_as, why), count in counts.items():
        alike[os.path.dirname(folder), taken_as, why].append((folder, count))
    rows = []
    for (above, taken_as, why), found in alike.items():
        if len(found) > MANY:
            name = f"{join(above, '*')} ({len(found)} folders)"
            rows.append(FolderReading(name, taken_as, sum(count for _, count in found), why))
        else:
            rows += (FolderReading(folder, taken_as, count, why) for folder, count in found)
    return sorted(rows, key=lambda row: (row.folder, row.taken_as, row.why))


def _as_said(record: ImageRecord, split: str | None, label: str | None) -> ImageRecord:
    """A photograph of a plain folder, as the caller says that all of them are."""
    if label is None and split is None:
        return record
    meaning = label if label is not None else None if split == "test" else "normal"
    chosen = split or ("test" if meaning == "anomalous" else "train")
    mask = record.mask_path if meaning == "anomalous" else None
    return ImageRecord(record.path, chosen, meaning, mask_path=mask)
