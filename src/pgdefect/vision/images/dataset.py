"""Which images are on disk, and what their place or a manifest says of them.

folder    read by the names of its folders, whatever the layout (`layouts`)
manifest  a CSV file in UTF-8, separated by comma, semicolon or tab, with the columns path
          (relative to the manifest), split, label, defect_type, part, mask; every further
          named column becomes an attribute

Names are read here, and the images only where names leave open which are masks. What is skipped
is said in `Dataset.problems` and counted in `Dataset.skipped`.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from pgdefect.core.errors import DatasetError, UsageError
from pgdefect.core.types import FolderReading, Skipped
from pgdefect.core.wording import option
from pgdefect.vision.images.folder_tree import (
    PARTS_FILES,
    FolderTree,
    entries,
    has_image_suffix,
    is_hidden,
    kind_of,
    skipped_of,
    unstorable,
    walk,
)
from pgdefect.vision.images.folder_words import LABEL_WORDS, MEANINGS, Meaning, label_of, meaning_of
from pgdefect.vision.images.image import IMAGE_SUFFIXES
from pgdefect.vision.images.layouts import (
    ImageRecord,
    Layout,
    meanings,
    read_layout,
)
from pgdefect.vision.images.manifest import (
    SPLITS,
    add_parts,
    manifest_root,
    read_manifest,
    rows_of,
)
from pgdefect.vision.images.masks import looks_like_mask

__all__ = ["Dataset", "ImageRecord", "scan", "scan_categories"]

NAMED = ("mvtec", "folders")
"""Layouts that say themselves what is normal."""
SIMULATED = "simulated defect"


@dataclass(frozen=True)
class Dataset:
    """The records in order of their paths, under the absolute folder `root`.

    Attributes:
        layout: "mvtec", "folders", "masks", "flat" or "manifest".
        problems: a line for whatever needs one.
        folders: what each is taken as.
        skipped: files that are left out, by suffix and reason.
    """

    root: Path
    records: tuple[ImageRecord, ...]
    layout: str
    problems: tuple[str, ...]
    folders: tuple[FolderReading, ...] = ()
    skipped: tuple[Skipped, ...] = ()


def scan(
    path: Path | str,
    *,
    parts: Path | str | None = None,
    split: str | None = None,
    label: str | None = None,
    said: Mapping[str, str] | None = None,
    category: str | None = None,
    only_photographs: bool = False,
    simulated: Collection[str] = (),
) -> Dataset:
    """List the images of a folder or a manifest.

    Args:
        path: the folder or the CSV file.
        parts: a CSV file with the columns path (relative to the data set's root) and part, the
            physical part shown; it overrides the manifest's part column. Without it, a
            ``parts.csv`` in the root fills in what the manifest leaves open. ``groups.csv`` and a
            column group are the old names.
        split: of all photographs, where folders do not say it.
        label: the same. A test split without a label is unlabeled, an anomalous label without a
            split is test.
        said: what folders are, by name or path: "normal", "anomalous", "masks" or "skip".
        category: which product is meant where a manifest lists several.
        only_photographs: leave out what is no photograph, and ask no more: for inspecting.
        simulated: absolute paths of simulated images and their masks, which are left out of a
            folder before its layout is read.

    Raises:
        DatasetError: nothing usable is found, or names could mean two things.
        UsageError: `split`, `label` or `said` is unknown or does not fit the layout.
    """
    top = Path(os.path.abspath(path))
    kind = kind_of(top)
    if kind == "nothing":
        raise DatasetError(f"{str(top)!r} does not exist or may not be read. Check the path")
    if kind == "other" or (kind == "file" and has_image_suffix(top.name)):
        raise DatasetError(f"{str(top)!r} is neither a folder nor a manifest. Name one of these")
    split, label, given = _checked(split, label, said or {})
    if kind == "file":
        dataset = _scan_manifest(top, category)
        sought = "no row names an image that exists"
    else:
        if not only_photographs:
            _refuse_several(top)
        dataset = _scan_folder(top, split, label, given, only_photographs, simulated)
        sought = (
            "no image in train/good and test/<defect type>"
            if dataset.layout == "mvtec" or _is_category(top)
            else f"no file with a suffix of {' '.join(sorted(IMAGE_SUFFIXES))}"
        )
    if dataset.layout in (*NAMED, "manifest") and (split, label) != (None, None):
        raise UsageError(
            f"{str(top)!r} says itself what is train or test, normal or anomalous. "
            "Give split and label only with a plain folder of images"
        )
    if not dataset.records and not any(s.reason == SIMULATED for s in dataset.skipped):
        skipped = "".join(f" {problem}." for problem in dataset.problems[:3])
        left_out = ", ".join(
            f"{s.count} {s.suffix or 'file'} ({s.reason})" for s in dataset.skipped
        )
        skipped += f" Left out: {left_out}." if left_out else ""
        raise DatasetError(f"{str(top)!r} has no images: {sought}.{skipped}")
    records, problems = list(dataset.records), list(dataset.problems)
    if parts is not None:
        add_parts(records, Path(os.path.abspath(parts)), problems, override=True)
    elif there := [
        name
        for name in PARTS_FILES
        # The manifest itself may be called so.
        if os.path.lexists(dataset.root / name) and dataset.root / name != top
    ]:
        add_parts(records, dataset.root / there[0], problems, override=False)
        problems += [f"{name} is not read: {there[0]} is there" for name in there[1:]]
    records.sort(key=lambda record: record.path)
    return Dataset(
        dataset.root,
        tuple(records),
        dataset.layout,
        tuple(problems),
        dataset.folders,
        dataset.skipped,
    )


def scan_categories(root: Path | str) -> dict[str, Path]:
    """Every folder directly under `root` that is a category's, by name, sorted.

    Raises:
        DatasetError: where `root` is no folder or has none.
    """
    top = Path(os.path.abspath(root))
    if kind_of(top) != "folder":
        raise DatasetError(f"{str(top)!r} is not a folder. Name the folder of the categories")
    categories = _categories(top)
    if not categories:
        wanted = "<category>/train/good or <category>/test/<defect type>"
        raise DatasetError(f"{str(top)!r} has no category: no folder {wanted}")
    return categories


def _checked(
    split: str | None, label: str | None, said: Mapping[str, str]
) -> tuple[str | None, str | None, dict[str, Meaning]]:
    if split is not None and split not in SPLITS:
        raise UsageError(f"unknown split {split!r}. Choose one of: {', '.join(SPLITS)}")
    if label is not None and label_of(label) is None:
        raise UsageError(f"unknown label {label!r}. Choose one of: {', '.join(LABEL_WORDS)}")
    for name, meaning in said.items():
        if meaning not in MEANINGS:
            raise UsageError(
                f"a folder is one of {', '.join(MEANINGS)}, and {name!r} was said to be {meaning!r}"
            )
    given = {name: MEANINGS[meaning] for name, meaning in said.items()}
    return split, label_of(label) if label is not None else None, given


def _scan_manifest(manifest: Path, category: str | None) -> Dataset:
    problems: list[str] = []
    root = manifest_root(manifest)
    records = read_manifest(manifest, root, category, problems)
    return Dataset(root, tuple(records), "manifest", tuple(problems), tuple(rows_of(records)))


def _scan_folder(
    root: Path,
    split: str | None,
    label: str | None,
    said: Mapping[str, Meaning],
    only_photographs: bool,
    simulated: Collection[str],
) -> Dataset:
    meaning = meanings(said)
    tree = _walk_without(root, simulated)
    named = {"train": "train", "validation": "train", "test": "test"}.get(
        meaning_of(root.name).meaning
    )
    layout = read_layout(tree, meaning, only_photographs=only_photographs, default_split=named)
    if not only_photographs:
        _refuse_doubts(root, layout, said, label)
        if (split, label) != (None, None) and (layout.doubts or layout.kind not in NAMED):
            tree = _walk_without(root, simulated)
            layout = read_layout(tree, meaning, split=split, label=label)
    _tell_beside_splits(tree, layout)
    return Dataset(
        root,
        tuple(layout.records),
        layout.kind,
        tuple(tree.problems),
        tuple(layout.folders),
        skipped_of(tree.skipped),
    )


def _walk_without(root: Path, simulated: Collection[str]) -> FolderTree:
    """The folder's files, without simulated images and their masks, which are counted."""
    tree = walk(root)
    if not simulated:
        return tree
    count = 0
    for folder, names in list(tree.files.items()):
        left_out = [name for name in names if os.path.join(root, folder, name) in simulated]
        if left_out:
            count += len(left_out)
            tree.skip(left_out, SIMULATED)
            kept = [name for name in names if name not in left_out]
            tree.files[folder] = kept
            if not kept:
                del tree.files[folder]
    if count:
        tree.problems.append(f"{count} files are simulated defects or masks of theirs; left out")
    return tree


def _refuse_doubts(
    root: Path, layout: Layout, said: Mapping[str, Meaning], label: str | None
) -> None:
    """Raises DatasetError where two readings would learn different things."""
    if label is not None:
        return
    said_how = (
        f"where all photographs in it are normal, say so with {option('label', 'normal')}; where "
        f"none is, with {option('label', 'anomalous')}"
    )
    if layout.kind == "flat" and not said:
        word = meaning_of(root.name)
        if word.meaning in ("anomalous", "defect") and word.certain:
            raise DatasetError(
                f"the name of {str(root)!r} says that its photographs are defective, and nothing "
                f"else in it does: {said_how}. Or ingest the folder around it"
            )
        if word.meaning in ("masks", "perhaps masks") and _are_masks(root, layout):
            raise DatasetError(
                f"the pictures in {str(root)!r} are masks by its name and by their look: ingest "
                f"the folder around it; or {said_how}"
            )
    if layout.doubts:
        first = layout.doubts[0].split("'")[1]
        more = f" and {len(layout.doubts) - 5} more" if len(layout.doubts) > 5 else ""
        each = (
            f"Say what each is with {option('folder')} {shlex.quote(first + '=normal')} (or "
            "anomalous, masks, skip); or, "
        )
        raise DatasetError(
            f"{str(root)!r} can be read in two ways, which would not learn the same. "
            f"{' '.join(layout.doubts[:5])}{more} {'' if first == '.' else each}{said_how}. Known "
            "layouts: train/good with test/<defect type> and ground_truth/<defect type>; good with "
            "<defect type> and mask/<defect type>; a manifest (docs/folders.md)"
        )


def _are_masks(root: Path, layout: Layout) -> bool:
    found = [looks_like_mask(root / record.path) for record in layout.records[:5]]
    return bool(found) and all(found)


def _tell_beside_splits(tree: FolderTree, layout: Layout) -> None:
    for row in layout.folders:
        if row.taken_as == "left out":
            tree.problems.append(f"{row.folder!r}: {row.count} photographs skipped, {row.why}")


def _refuse_several(root: Path) -> None:
    if _is_category(root):
        return
    categories = _categories(root)
    if categories and (len(categories) > 1 or _is_mvtec(next(iter(categories.values())))):
        raise DatasetError(
            f"{str(root)!r} holds {len(categories)} categories ({', '.join(categories)}), "
            f"not one. Name one of these folders, or ingest all of them with {option('all')}; "
            "where they are "
            f"batches of one product, ingest each with the same {option('category')}"
        )


def _categories(root: Path) -> dict[str, Path]:
    found = {
        entry.name: Path(entry.path)
        for entry in entries(root)
        if not unstorable(entry.name) and not is_hidden(entry.name)
    }
    return {name: folder for name, folder in found.items() if _is_category(folder)}


def _folders_in(folder: Path) -> list[Path]:
    # One that cannot be read is reported by the walk.
    found = [entry for entry in entries(folder, []) if not is_hidden(entry.name)]
    return [Path(entry.path) for entry in found if kind_of(entry.path) == "folder"]


def _is_mvtec(folder: Path) -> bool:
    """Whether splits hold folders of labels: train/good, test/<defect type>."""
    for split in _folders_in(folder):
        means = meaning_of(split.name).meaning
        if means == "test" and _folders_in(split):
            return True
        if means == "train" and any(
            meaning_of(label.name).meaning == "normal" for label in _folders_in(split)
        ):
            return True
    return False


def _is_category(folder: Path, depth: int = 0) -> bool:
    """Whether the folders in one say what is normal, and of what else."""
    if _is_mvtec(folder):
        return True
    inside = _folders_in(folder)
    means = [meaning_of(one.name).meaning for one in inside]
    if "normal" in means and len(inside) > 1:
        return True
    neutral = [one for one, meant in zip(inside, means, strict=True) if meant == "neutral"]
    return depth < 3 and any(_is_category(one, depth + 1) for one in neutral)
