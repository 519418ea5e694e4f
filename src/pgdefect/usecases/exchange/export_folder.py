"""Folders that exports make: whole or not there, and never in the place of something else."""

from __future__ import annotations

import json
import os
import shutil
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from pgdefect import __version__
from pgdefect.core.errors import DatabaseError, UsageError
from pgdefect.core.file_claims import claim, new_claimed, remove_unclaimed
from pgdefect.core.wording import option

MANIFEST = "export.json"
"""What a folder holds and how it was made; its presence says that we made the folder."""
NOTES = ".written"
"""Of a draft: what it holds whole."""


@contextmanager
def new_folder(path: Path, *, force: bool, key: str | None = None) -> Iterator[Path]:
    """A folder to write to, which takes its place when the block ends well.

    An empty folder is used, and with `force` an earlier export replaced; nothing else
    is. Where the block fails, what was there is there still.

    Args:
        key: says what is written. One of this key that was killed, or lost the database, is
            resumed: the folder then has in it what `Notes` knows of.

    Raises:
        UsageError: something is in the way, or the place cannot be written to.
    """
    path = Path(os.path.realpath(path))
    prefix = _beside(path, "part") + (f"{key[:16]}-" if key else "")
    resumed = _tidy(path, prefix if key else None)
    try:
        _check_free(path, force)
    except UsageError:
        if resumed:
            os.close(resumed[1])
        raise
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part, held = resumed or new_claimed(path.parent, prefix, mode=0o777)
    except OSError as error:
        raise _unwritable(path, error) from error
    keep = False
    try:
        yield part
        (part / NOTES).unlink(missing_ok=True)
        _put_in_place(part, path)
    except OSError as error:
        raise _unwritable(path, error) from error
    except DatabaseError:
        keep = (part / NOTES).exists()
        raise
    finally:
        if not keep:
            shutil.rmtree(part, ignore_errors=True)
        if held is not None:
            os.close(held)


class Notes:
    """Which tables a draft holds whole, by name, each with what is `about` to be in it."""

    def __init__(self, folder: Path) -> None:
        """Read the notes in a draft, and remove what they do not vouch for."""
        self._folder, self._path = folder, folder / NOTES
        self._tables: dict[tuple[str, str], list[str]] = {}
        with suppress(FileNotFoundError):
            for line in self._path.read_text(errors="replace").splitlines():
                self._read(line)
        kept = {Path(file).parts[0] for files in self._tables.values() for file in files}
        for other in folder.iterdir():
            if other.name in kept | {NOTES}:
                continue
            if other.is_dir():
                shutil.rmtree(other)
            else:
                other.unlink()

    def _read(self, line: str) -> None:
        try:
            name, about, sums = json.loads(line)
            whole = all(_checksum(self._folder / file) == sums[file] for file in sums)
        except (ValueError, TypeError, OSError):  # torn by a power cut
            return
        if whole:
            self._tables[name, about] = list(sums)

    def files(self, name: str, about: str) -> list[str] | None:
        """The files of a table that is there already; None where it is to be written."""
        return self._tables.get((name, about))

    def add(self, name: str, about: str, files: Sequence[str]) -> None:
        """Vouch for a table that was written."""
        sums = {file: _checksum(self._folder / file) for file in files}
        with self._path.open("a") as notes:
            notes.write(f"\n{json.dumps([name, about, sums])}\n")


def _checksum(path: Path) -> int:
    with path.open("rb") as file:
        total = 0
        while block := file.read(1 << 20):
            total = zlib.crc32(block, total)
    return total


def _beside(path: Path, what: str) -> str:
    """What the names of folders begin with that stand in for `path` for a while."""
    return f".{path.name}.{what}-"


def _tidy(path: Path, wanted: str | None) -> tuple[Path, int] | None:
    """Put right what killed exports to this place left: an earlier one that was being replaced
    goes back where nothing is in its place, and drafts go; but one whose name begins as wanted
    is claimed, and returned.
    """
    found = None
    with suppress(OSError):
        beside = list(path.parent.iterdir())
        olds = [other for other in beside if other.name.startswith(_beside(path, "old"))]
        for old in olds:
            if not os.path.lexists(path) and (held := claim(old)) is not None:
                old.rename(path)
                os.close(held)
        parts = [other for other in beside if other.name.startswith(_beside(path, "part"))]
        for part in parts:
            if wanted and part.name.startswith(wanted) and not found and (part / NOTES).exists():
                held = claim(part)
                found = None if held is None else (part, held)
        # What was claimed just now is not unclaimed.
        remove_unclaimed(olds + parts)
    return found


def check_new_file(path: Path, *, force: bool) -> None:
    """Make the file's folder. Raises UsageError for a file that is there, unless `force`."""
    if path.is_dir():
        raise UsageError(f"{str(path)!r} is a folder; name a file to write")
    if os.path.lexists(path) and not force:
        raise UsageError(f"{str(path)!r} already exists; {option('force')} replaces it")
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
        raise UsageError(
            f"{str(path)!r} already exists and is not empty; {option('force')} replaces it"
        )
    if not (path / MANIFEST).is_file():
        raise UsageError(
            f"{str(path)!r} holds no {MANIFEST}, so that no export made it, and {option('force')} "
            "does not "
            "replace it either; name another folder"
        )


def _put_in_place(part: Path, path: Path) -> None:
    old = path.with_name(f"{_beside(path, 'old')}{uuid.uuid4().hex[:12]}")
    replaced = path.exists()
    held = claim(path) if replaced else None
    if replaced:
        path.rename(old)
    try:
        part.rename(path)
    except OSError:
        if replaced:
            old.rename(path)
        raise
    finally:
        if held is not None:
            os.close(held)
    shutil.rmtree(old, ignore_errors=True)


def _unwritable(path: Path, error: OSError) -> UsageError:
    return UsageError(
        f"{str(path)!r} cannot be written: {error.strerror or error}. Nothing of it is left; "
        "name another place or make room"
    )
