"""Files a user names (paths, folders, patterns), and folders named after categories."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pgdefect.core.errors import DatasetError
from pgdefect.core.types import Skipped
from pgdefect.vision.images.dataset import Dataset, scan
from pgdefect.vision.images.folder_tree import NOT_AN_IMAGE, has_image_suffix, skipped_of
from pgdefect.vision.images.layouts import meanings
from pgdefect.vision.images.mask_files import divide

__all__ = ["Listed", "folder_name", "list_images", "masks_among"]


@dataclass(frozen=True)
class Listed:
    """Absolute paths of images, each once; a line for whatever needs one; what was left out."""

    files: tuple[str, ...]
    problems: tuple[str, ...]
    skipped: tuple[Skipped, ...]


def list_images(paths: Sequence[Path]) -> Listed:
    """The images that files, folders and glob patterns name.

    What is a photograph is decided as ingesting decides it: masks, thumbnails and whatever is no
    picture are left out and counted. A file that is named itself is taken, whatever its suffix,
    unless it is the mask of another one that is named.

    Raises:
        DatasetError: a path does not exist, or a folder has no images.
    """
    found: dict[str, None] = {}
    problems: list[str] = []
    skipped: Counter[tuple[str, str]] = Counter()
    named: list[str] = []
    for path in paths:
        if os.path.isdir(path):
            dataset = scan(path, only_photographs=True)
            problems += dataset.problems
            skipped.update({(one.suffix, one.reason): one.count for one in dataset.skipped})
            skipped.update({("", "a mask"): _masks_in(dataset)})
            found.update((str(dataset.root / record.path), None) for record in dataset.records)
        elif os.path.lexists(path):
            named.append(os.path.abspath(path))
            found[named[-1]] = None
        elif matches := sorted(glob.glob(str(path), recursive=True)):
            more = _matching(str(path), matches, skipped)
            found.update((name, None) for name in more.files)
            problems += more.problems
        else:
            raise DatasetError(f"{str(path)!r} does not exist. Check the path")
    for mask in masks_among(named):
        found.pop(mask, None)
        skipped["" if "." not in mask else os.path.splitext(mask)[1].lower(), "a mask"] += 1
    skipped = +skipped
    return Listed(tuple(found), tuple(problems), skipped_of(skipped))


def _masks_in(dataset: Dataset) -> int:
    return sum(row.count for row in dataset.folders if row.taken_as == "masks")


def _matching(pattern: str, matches: list[str], skipped: Counter[tuple[str, str]]) -> Listed:
    """What a pattern matches: folders are listed, files divided as those of one folder."""
    fixed = pattern[: re.search(r"[*?\[]", pattern).start()]  # type: ignore[union-attr]
    root = Path(os.path.abspath(os.path.dirname(fixed) or "."))
    folders = [Path(match) for match in matches if os.path.isdir(match)]
    recursive = "**" in pattern
    more = list_images(folders) if folders and not recursive else Listed((), (), ())
    skipped.update({(one.suffix, one.reason): one.count for one in more.skipped})
    inside: dict[str, list[str]] = {}
    for match in (match for match in matches if not os.path.isdir(match)):
        folder, name = os.path.split(os.path.relpath(os.path.abspath(match), root))
        if has_image_suffix(name):
            inside.setdefault(folder, []).append(name)
        else:
            skipped[os.path.splitext(name)[1].lower(), NOT_AN_IMAGE] += 1
    divided = divide(root, inside, meanings({}))
    masks = [name for names in divided.masks.values() for name in names]
    for name in (*masks, *divided.beside.values()):
        skipped[os.path.splitext(name)[1].lower(), "a mask"] += 1
    files = [
        str(root / folder / name)
        for folder, names in sorted(divided.photographs.items())
        for name in names
    ]
    return Listed((*more.files, *files), more.problems, ())


def masks_among(files: Sequence[str]) -> list[str]:
    """Those of some files that are the masks of others beside them."""
    beside: dict[str, list[str]] = {}
    for file in files:
        folder, name = os.path.split(file)
        if has_image_suffix(name):
            beside.setdefault(folder, []).append(name)
    return [
        os.path.join(folder, mask)
        for folder, names in beside.items()
        if len(names) > 1
        for mask in divide(Path(folder), {"": names}, meanings({})).beside.values()
    ]


def folder_name(category: str) -> str:
    """A folder for what is written of a category, of one level; its own name where that serves.

    Else what it lost is told apart by a digest: names of categories may hold any character.
    """
    plain = re.sub(r"[^\w .-]", "_", category)
    while len(os.fsencode(plain)) > 100 or plain[:1] in (".", " "):
        plain = plain[1:] if plain[:1] in (".", " ") else plain[:-1]
    if plain == category:
        return plain
    return f"{plain}-{hashlib.sha256(category.encode()).hexdigest()[:8]}"
