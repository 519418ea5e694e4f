"""Folders that exports make: whole or not there, and never in the place of something else."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pgdefect import __version__
from pgdefect.errors import UsageError

MANIFEST = "export.json"
"""What a folder holds and how it was made; its presence says that we made the folder."""


@contextmanager
def new_folder(path: Path, *, force: bool) -> Iterator[Path]:
    """A folder to write to, which takes its place when the block ends well.

    An empty folder is taken over, and with `force` an earlier export replaced; nothing else
    is. Where the block fails, what was there is there still.

    Raises:
        UsageError: something is in the way, or the place cannot be written to.
    """
    path = Path(os.path.realpath(path))
    _check_free(path, force)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.mkdir()
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        yield part
        _put_in_place(part, path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def check_new_file(path: Path, *, force: bool) -> None:
    """Make the file's folder. Raises UsageError for a file that is there, unless `force`."""
    if path.is_dir():
        raise UsageError(f"{str(path)!r} is a folder; name a file to write")
    if os.path.lexists(path) and not force:
        raise UsageError(f"{str(path)!r} already exists; --force replaces it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UsageError(f"{str(path)!r} cannot be written: permission denied. Name another place")


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Say in the folder what it holds."""
    text = as_json({"made_by": f"pgdefect {__version__}", **content}, indent=2)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def as_json(value: Any, indent: int | None = None) -> str:
    """JSON, with arrays as lists and what JSON does not know as its text."""
    return json.dumps(
        value,
        default=lambda other: other.tolist() if isinstance(other, np.ndarray) else str(other),
        ensure_ascii=False,
        indent=indent,
    )


def _check_free(path: Path, force: bool) -> None:
    if not os.path.lexists(path):
        return
    if not path.is_dir():
        raise UsageError(f"{str(path)!r} is a file; name a folder to write")
    if not any(path.iterdir()):
        return
    if not force:
        raise UsageError(f"{str(path)!r} already exists and is not empty; --force replaces it")
    if not (path / MANIFEST).is_file():
        raise UsageError(
            f"{str(path)!r} holds no {MANIFEST}, so that no export made it, and --force does not "
            "replace it either; name another folder"
        )


def _put_in_place(part: Path, path: Path) -> None:
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    replaced = path.exists()
    if replaced:
        path.rename(old)
    try:
        part.rename(path)
    except OSError:
        if replaced:
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _unwritable(path: Path, error: OSError) -> UsageError:
    return UsageError(
        f"{str(path)!r} cannot be written: {error.strerror or error}. Nothing of it is left; "
        "name another place or make room"
    )
