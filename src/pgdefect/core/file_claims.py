"""Files and folders that a process works in, told from those that a dead one left behind.

A process claims what it works in by flock, which the kernel takes back from it however it ends;
PIDs are reused, and differ between containers.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["claim", "claimed", "locks_work", "new_claimed", "remove_unclaimed", "scratch_folder"]


def claim(path: Path) -> int | None:
    """Hold a file or folder until the descriptor returned is closed, or the process ends.

    None where another process holds it, where it is gone or closed to us, and where the file
    system knows no locks.
    """
    try:
        held = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Between the two calls somebody may have removed it, or put another in its place.
        if os.path.samestat(os.fstat(held), os.stat(path, follow_symlinks=False)):
            return held
    except OSError:
        pass
    os.close(held)
    return None


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """`claim` for a block, or no claim where that is not to be had."""
    held = claim(path)
    try:
        yield
    finally:
        if held is not None:
            os.close(held)


def new_claimed(parent: Path, prefix: str, mode: int = 0o700) -> tuple[Path, int | None]:
    """Make a folder of a name of its own and claim it; without a claim where locks do not work."""
    while True:
        folder = parent / f"{prefix}{uuid.uuid4().hex[:12]}"
        folder.mkdir(mode=mode)
        held = claim(folder)
        # One that was swept away before it was claimed is made again.
        if held is not None or not locks_work(parent):
            return folder, held


def locks_work(folder: Path) -> bool:
    """Whether the file system of a folder knows locks; network ones may not."""
    try:
        file = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(file)
    return True


def remove_unclaimed(paths: Iterable[Path]) -> None:
    """Remove the files and folders that no living process claims."""
    for path in paths:
        held = claim(path)
        if held is None:
            continue
        try:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        except OSError:
            continue  # Of another user, say: nothing of ours depends on it.
        finally:
            os.close(held)


@contextmanager
def scratch_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A folder for the block; those of the prefix that killed processes left go first."""
    remove_unclaimed(path for path in parent.iterdir() if path.name.startswith(prefix))
    folder, held = new_claimed(parent, prefix)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if held is not None:
            os.close(held)
