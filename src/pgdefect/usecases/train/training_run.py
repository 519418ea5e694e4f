"""What a command that trains has stored, so that the same command can resume after an interruption.

A detector and the note of it cannot be written at once: the note, a token, comes first, and the
detector is stored with the token in its settings. Where a later command finds the detector, the
training is done.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from pgdefect.core.config import Settings
from pgdefect.core.errors import DatabaseError
from pgdefect.core.file_claims import claim, remove_unclaimed
from pgdefect.db.connection.engine import Database
from pgdefect.usecases.train.options import Options
from pgdefect.vision.patchcore.patch_spool import KEPT_DAYS, content_hash

__all__ = ["TrainingRun"]

_PREFIX = "training-run-"


class TrainingRun:
    """A file of tokens that goes with the block, but where that is killed or loses the database.

    The same categories, options and database lead to the same file. If another process has it,
    nothing is noted.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        categories: Sequence[str],
        options: Options,
    ) -> None:
        self._subject = f"{_PREFIX}{content_hash([database.safe_url, list(categories)])[:12]}-"
        self._path = settings.cache_dir / f"{self._subject}{content_hash(options.recorded())[:32]}"
        self._tokens: dict[tuple[str, str], str] = {}
        self._held: int | None = None

    def __enter__(self) -> TrainingRun:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        remove_unclaimed(
            path for path in self._path.parent.glob(f"{_PREFIX}*") if self._is_stale(path)
        )
        self._path.touch(mode=0o600)
        self._held = claim(self._path)
        if self._held is not None:
            for line in self._path.read_text(errors="replace").splitlines():
                self._read(line)
        return self

    def _is_stale(self, path: Path) -> bool:
        """Whether a file is of the same categories with other options, or old."""
        if path.name.startswith(self._subject):
            return path != self._path
        try:
            return time.time() - path.stat().st_mtime > KEPT_DAYS * 86_400
        except FileNotFoundError:
            return False

    def _read(self, line: str) -> None:
        try:
            category, content, token = json.loads(line)
        except (ValueError, TypeError):  # torn by a power cut
            return
        self._tokens[category, content] = token

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._held is None:
            return
        if not isinstance(error, DatabaseError):
            self._path.unlink(missing_ok=True)
        os.close(self._held)

    def token(self, category: str, content: str) -> str | None:
        """Of the training of this category and this content, by an interrupted command."""
        return self._tokens.get((category, content))

    def begin(self, category: str, content: str) -> str | None:
        """Note a training, before anything of it is stored; None where nothing is noted."""
        if self._held is None:
            return None
        token = uuid.uuid4().hex
        with self._path.open("a") as file:
            file.write(f"\n{json.dumps([category, content, token])}\n")
            file.flush()
            os.fsync(file.fileno())
        self._tokens[category, content] = token
        return token
