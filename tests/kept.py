"""What runs leave for later ones, of all checkouts: made anew when the code behind it changes."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import platformdirs

MAX_KEPT = 8
"""Versions of one thing; the ones that were not used for longest are removed."""


def kept_folder(name: str, code: Iterable[Path], make: Callable[[Path], object]) -> Path:
    """A folder that `make` has filled, in this run or an earlier one with the same code.

    It is made under another name and renamed: several runs may need it at once.
    """
    digest = hashlib.sha256()
    for path in sorted(code):
        digest.update(path.read_bytes())
    parent = platformdirs.user_cache_path("pgdefect-tests") / name
    folder = parent / digest.hexdigest()
    if not folder.is_dir():
        _remove_oldest(parent)
        draft = parent / uuid.uuid4().hex
        draft.mkdir(parents=True)
        make(draft)
        with suppress(OSError):  # another run was faster
            draft.rename(folder)
        shutil.rmtree(draft, ignore_errors=True)
    os.utime(folder)
    return folder


def _remove_oldest(parent: Path) -> None:
    with suppress(OSError):
        by_age = sorted(parent.iterdir(), key=lambda path: path.stat().st_mtime)
        for path in by_age[: -MAX_KEPT + 1]:
            shutil.rmtree(path, ignore_errors=True)
