"""Files of the cache: written whole or not at all, by several processes at once."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from pgdefect.core.file_claims import claimed, remove_unclaimed

__all__ = ["write_cached"]


def write_cached(path: Path, content: bytes) -> None:
    """Best effort: a cache that cannot be written costs time, not correctness."""
    temporary = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Left behind by processes that were killed while writing.
        remove_unclaimed(path.parent.glob("*.part"))
        with temporary.open("wb") as file, claimed(temporary):
            file.write(content)
            file.flush()
            temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
