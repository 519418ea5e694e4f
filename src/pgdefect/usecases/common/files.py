"""Files a user names (paths, folders, patterns), and folders named after categories."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from pgdefect.core.errors import DatasetError
from pgdefect.vision.images.dataset import scan

__all__ = ["folder_name", "list_images"]


def list_images(paths: Sequence[Path]) -> tuple[list[str], list[str]]:
    """Absolute paths of the images that files, folders and glob patterns name, each once.

    A folder gives its images as ingesting it would: never the masks of an MVTec layout. Second
    comes a line for whatever was skipped in a folder.
    Raises DatasetError for a path that does not exist and a folder without images.
    """
    found: dict[str, None] = {}
    problems: list[str] = []
    for path in paths:
        if os.path.isdir(path):
            dataset = scan(path)
            problems += dataset.problems
            found.update((str(dataset.root / record.path), None) for record in dataset.records)
        elif os.path.lexists(path):
            found[os.path.abspath(path)] = None
        elif matches := sorted(glob.glob(str(path), recursive=True)):
            names, more = list_images([Path(m) for m in matches])
            found.update((name, None) for name in names)
            problems += more
        else:
            raise DatasetError(f"{str(path)!r} does not exist. Check the path")
    return list(found), problems


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
