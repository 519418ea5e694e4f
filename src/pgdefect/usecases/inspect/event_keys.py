"""Whose request a run of `inspect` answers, and what was stored of it before.

A station names its request with an event key: asked again, it gets what was said the first
time, and only what is missing is inspected. A run without one resumes an equal run (the same
detector, threshold, search and arguments) that did not finish; after one that did, it is a
re-inspection, and adds events.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from pgdefect.core.errors import ImageError, UsageError
from pgdefect.core.types import Inspection, StoredImage
from pgdefect.db.connection.engine import Database
from pgdefect.db.records.inspection_runs import (
    StoredInspection,
    begin_run,
    finish_run,
    inspected_under,
    unfinished_run,
)
from pgdefect.usecases.inspect.inspector import Inspector
from pgdefect.vision.images.image import sha256_of
from pgdefect.vision.images.preprocess import Preprocessing

__all__ = ["Run", "open_run", "root_of"]


@dataclass(frozen=True)
class Run:
    """An event key with what is stored under it, by sha256; digest: None where a user named it."""

    event_key: str
    digest: str | None
    detector_id: int
    before: Mapping[str, StoredInspection]

    def stored(self, path: str, known: StoredImage | None) -> Inspection | None:
        """What this run, or one that it resumes, has said of a file before; None for nothing.

        A file that cannot be read, or has changed, is left to the inspection to tell of.
        """
        if not self.before:
            return None
        try:
            found = self.before.get(sha256_of(Path(path)))
        except ImageError:
            return None
        if found is None or (known is not None and known.id != found.image.id):
            return None
        return _as_inspection(found, path)

    def begin(self, connection: Connection) -> str:
        """The event key for what is stored in this transaction; the run is recorded with it."""
        if self.digest is None:
            return self.event_key
        return begin_run(connection, self.digest, self.detector_id, self.event_key)

    def finish(self, database: Database) -> None:
        """The run is complete: the next one like it adds events."""
        if self.digest is not None:
            database.transact(partial(finish_run, digest=self.digest))


def open_run(
    database: Database,
    inspector: Inspector,
    event_key: str | None,
    paths: Sequence[Path],
    asked: Mapping[str, Any],
) -> Run:
    """A new run, or one to resume.

    Args:
        database: where it is stored.
        inspector: what will judge.
        event_key: the user's, 1 to 200 printable characters; None for a run of its own.
        paths: files and folders as the user named them.
        asked: whatever else makes two runs differ.

    Raises UsageError for a key that is none.
    """
    detector, digest = inspector.detector, None
    if event_key is not None:
        if not 1 <= len(event_key) <= 200 or not event_key.isprintable():
            raise UsageError(
                f"an event key has 1 to 200 printable characters, not {len(event_key)}: "
                f"{event_key[:40]!r}"
            )
        key = event_key
    else:
        files = [os.path.abspath(path) for path in paths]
        said = [detector.id, detector.threshold, inspector.search_kind, dict(asked), files]
        digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
        found = unfinished_run(database, digest)
        if found is None:
            return Run(f"run-{uuid.uuid4().hex}", digest, detector.id, {})
        key = found
    return Run(key, digest, detector.id, inspected_under(database, detector.category_id, key))


def root_of(image: StoredImage) -> str:
    """The folder that an image's relative path starts from."""
    return image.path.removesuffix(image.relative_path)


def _as_inspection(stored: StoredInspection, path: str) -> Inspection:
    image, scores = stored.image, stored.scores
    box = Preprocessing.from_dict(dict(stored.preprocessing)).grid_to_pixels(
        scores.worst_row, scores.worst_col, scores.distances.shape, (image.height, image.width)
    )
    return Inspection(
        path=path,
        category=image.category,
        detector_id=stored.detector_id,
        threshold=stored.threshold,
        raw_score=stored.raw_score,
        normalized_score=stored.normalized_score,
        scores=scores,
        worst_box=box,
        search=stored.search,  # type: ignore[arg-type]
        image_id=image.id,
        inspection_id=stored.id,
        known_label=image.known_label,
        known_defect_type=image.known_defect_type,
        mask_path=image.mask_path and os.path.join(root_of(image), image.mask_path),
        defect=stored.defect,
        vote=stored.vote,
    )
