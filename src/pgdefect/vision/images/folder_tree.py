"""What files lie in and below a folder, each entered once; what is left out is counted."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pgdefect.core.errors import DatasetError
from pgdefect.core.types import Skipped
from pgdefect.vision.images.folder_words import is_thumbnail, meaning_of
from pgdefect.vision.images.image import IMAGE_SUFFIXES
from pgdefect.vision.images.more_words import words

__all__ = [
    "MAX_INDEXED_BYTES",
    "FolderTree",
    "entries",
    "has_image_suffix",
    "kind_of",
    "skipped_of",
    "too_long",
    "unstorable",
    "walk",
]

MAX_INDEXED_BYTES = 2000
"""The longest path, defect type or part, in UTF-8: an index of Postgres's holds no longer one."""

PARTS_FILES = ("parts.csv", "groups.csv")
"""Says of images which part they show, the second under its old name; the first that is there is
read, and neither is left out as no image."""
NOT_AN_IMAGE = "no image"
NOT_READ = "a picture format that is not read: convert it to PNG or TIFF"
HIDDEN = "hidden, or left by an archive or a file manager"
THUMBNAIL = "a thumbnail"
BROKEN = "a broken link or no regular file"
BAD_NAME = "a name that is not valid UTF-8 or too long"

_HIDDEN = (
    "__macosx",
    "$recycle.bin",
    "lost+found",
    "@eadir",
    "#recycle",
    "system volume information",
)
_JUNK = frozenset({"thumbs.db", "desktop.ini", "ehthumbs.db"})
_OTHER_PICTURES = words(
    ".heic .heif .avif .jxl .jp2 .j2k .jpx .tga .pcx .psd .exr .hdr .dcm .raw .dng "
    ".cr2 .cr3 .nef .arw .orf .rw2 .raf .svg .ico .xcf .fits .npy .npz .bin .sgi .ras "
    ".eps .wmf .emf"
)


@dataclass
class FolderTree:
    """files: by folder (relative to `root`, "" for itself), the names of readable kinds, sorted.

    Attributes:
        skipped: how many files of a suffix are left out, and why.
        problems: lines about some of them.
    """

    root: Path
    files: dict[str, list[str]] = field(default_factory=dict)
    skipped: Counter[tuple[str, str]] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def skip(self, names: Iterable[str], reason: str) -> None:
        """Count files that are left out."""
        self.skipped.update((os.path.splitext(name)[1].lower(), reason) for name in names)


def skipped_of(counts: Counter[tuple[str, str]]) -> tuple[Skipped, ...]:
    """The counts in the order of suffixes and reasons."""
    return tuple(Skipped(*key, count) for key, count in sorted(counts.items()))


def kind_of(path: str | os.PathLike[str]) -> str:
    """Return "folder", "file", "other" (a pipe, say) or "nothing" (also a broken link)."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return "nothing"
    return "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "other"


def has_image_suffix(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def unstorable(text: str) -> bool:
    """Whether a file name is not valid UTF-8, which a Postgres text column cannot hold."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def too_long(text: str) -> bool:
    """Whether a text is longer than an index holds."""
    return len(text.encode()) > MAX_INDEXED_BYTES


def is_hidden(name: str) -> bool:
    """Whether a name is one that people do not see, or that a program left behind."""
    lower = name.lower()
    return lower.startswith((".", *_HIDDEN)) or lower in _JUNK


def entries(folder: Path, problems: list[str] | None = None) -> list[os.DirEntry[str]]:
    """List a folder by name, hidden entries and all; [] if it is none.

    Raises:
        DatasetError: for one that cannot be read, unless there are `problems` to say so in.
    """
    if kind_of(folder) != "folder":
        return []
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        if problems is None:
            raise DatasetError(f"{str(folder)!r} cannot be read: {error}") from error
        problems.append(f"{str(folder)!r} cannot be read: {error.strerror}; skipped")
        return []


def walk(root: Path) -> FolderTree:
    """List all below `root`.

    Links to folders are followed after the real folders, and no folder is entered twice, so
    a loop ends and a file reached both ways keeps its real path.
    """
    tree = FolderTree(root)
    seen: set[str] = set()
    real, linked = [""], list[str]()
    while real or linked:
        here = real.pop() if real else linked.pop(0)
        folder = os.path.realpath(root / here)
        if folder in seen:
            continue
        seen.add(folder)
        names: list[str] = []
        for entry in entries(root / here, tree.problems):
            relative = f"{here}/{entry.name}" if here else entry.name
            folders = _take(tree, entry, relative, names)
            if folders:
                (linked if entry.is_symlink() else real).append(relative)
        stems = {os.path.splitext(name)[0] for name in names}
        small = {name for name in names if is_thumbnail(os.path.splitext(name)[0], stems)}
        tree.skip(small, THUMBNAIL)
        if kept := [name for name in names if name not in small]:
            tree.files[here] = kept
    return tree


def _take(tree: FolderTree, entry: os.DirEntry[str], relative: str, names: list[str]) -> bool:
    """Add a file's name to `names`, or count it as left out; True for a folder to enter."""
    kind = _entry_kind(entry)
    if is_hidden(entry.name):
        _skip_all(tree, entry, kind, HIDDEN)
    elif kind == "folder" and meaning_of(entry.name).meaning == "skip":
        _skip_all(tree, entry, kind, THUMBNAIL)
    elif kind == "nothing" and entry.is_dir(follow_symlinks=False):
        tree.problems.append(f"{relative!r} may not be entered; skipped")
    elif relative in PARTS_FILES:
        pass
    elif kind != "folder" and not has_image_suffix(entry.name):
        other = os.path.splitext(entry.name)[1].lower() in _OTHER_PICTURES
        tree.skip([entry.name], NOT_READ if other else NOT_AN_IMAGE)
    elif unstorable(relative):
        tree.problems.append(f"{relative!r} is not valid UTF-8; skipped, rename it")
        _skip_all(tree, entry, kind, BAD_NAME)
    elif kind == "folder":
        return True
    elif kind != "file":
        tree.problems.append(f"{relative!r} is a broken link or no regular file; skipped")
        tree.skip([entry.name], BROKEN)
    elif too_long(relative):
        tree.problems.append(f"{relative!r} is longer than {MAX_INDEXED_BYTES} bytes; skipped")
        tree.skip([entry.name], BAD_NAME)
    else:
        names.append(entry.name)
    return False


def _entry_kind(entry: os.DirEntry[str]) -> str:
    """`kind_of`, without asking the disk again where the listing has said it."""
    try:
        if entry.is_file(follow_symlinks=False):
            return "file"
    except OSError:
        pass
    return kind_of(entry.path)


def _skip_all(tree: FolderTree, entry: os.DirEntry[str], kind: str, reason: str) -> None:
    """Count a file that is left out, or the pictures below a folder that is."""
    if kind != "folder":
        tree.skip([entry.name], reason)
    elif not entry.is_symlink():
        for _, _, names in os.walk(entry.path):
            tree.skip((name for name in names if has_image_suffix(name)), reason)
