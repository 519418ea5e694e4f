"""Make the embeddings that searches need and that are missing or of an older detector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from sqlalchemy import Connection

from pgdefect.core.config import Settings
from pgdefect.core.detector_kinds import PATCHCORE
from pgdefect.core.errors import ImageError
from pgdefect.core.progress import Progress, silent
from pgdefect.core.types import Detector, StoredImage
from pgdefect.db.connection.engine import Database
from pgdefect.db.connection.row_locks import keep_detector, lock_images
from pgdefect.db.records.defects import store_defects, without_defect_embedding
from pgdefect.db.records.extractors import images_without_embedding
from pgdefect.db.search.queries import images_of, stored_images
from pgdefect.usecases.common.duplicate_limit import measure_duplicate_limit
from pgdefect.usecases.common.embedding import by_input_size, embed_images
from pgdefect.usecases.common.stored_files import only_unchanged
from pgdefect.usecases.inspect.defects import DefectFinder
from pgdefect.usecases.inspect.inspector import Inspector, Judged

MANY = 32
"""Images for which it pays to load the memory bank."""


@dataclass(frozen=True)
class EmbedReport:
    """How many embeddings were made, and the files that could not be read."""

    category: str
    detector_id: int
    image_embeddings: int
    defect_embeddings: int
    failed: tuple[tuple[str, str], ...]


def embed(
    database: Database,
    settings: Settings,
    category: str,
    *,
    again: bool = False,
    progress: Progress = silent,
) -> EmbedReport:
    """Embed a category's images with its active PatchCore detector.

    Image embeddings where there are none; defect embeddings and regions of images that are
    anomalous, by their newest verdict or by what is known of them, where there are none of
    this detector's; all of those if `again`. Stored batch by batch: interrupted, what was made
    is kept, and a second run completes it. No verdict changes. The limit between copies and other
    photographs (`defect.duplicate_limits`) is measured anew.

    Raises UnknownCategory, NoActiveDetector; NotFound: an old detector, train again.
    """
    inspector = Inspector(database, settings, category, "hnsw", PATCHCORE)
    detector = inspector.detector
    everything = images_of(database, category)
    with database.connect() as connection:
        ids = [image.id for image in everything]
        missing = len(images_without_embedding(connection, detector.extractor_id, ids))
    failed = embed_images(
        database, inspector.extractor, detector.extractor_id, everything, progress
    )
    measure_duplicate_limit(
        database, inspector.extractor, detector.id, detector.extractor_id, everything
    )
    with database.connect() as connection:
        ids = without_defect_embedding(connection, detector.category_id, detector.id, again=again)
        images = list(stored_images(connection, ids).values())
    made, unread = embed_defects(database, settings, inspector, images, progress)
    return EmbedReport(
        category,
        detector.id,
        missing - len(failed),
        made,
        tuple(dict([*failed, *unread]).items()),
    )


def embed_first_defects(
    database: Database, settings: Settings, category: str, progress: Progress = silent
) -> list[tuple[str, str]]:
    """Make the defect embeddings of anomalous images that no detector has made yet.

    Searches by defect find these images then; what an older detector of the same extractor made
    still compares. Returns path and reason of failures.
    """
    inspector = Inspector(database, settings, category, "hnsw", PATCHCORE)
    if not inspector.finds_defects:
        return []
    detector = inspector.detector
    with database.connect() as connection:
        ids = without_defect_embedding(
            connection, detector.category_id, detector.id, any_detector=True
        )
        images = list(stored_images(connection, ids).values())
    if not images:
        return []
    return embed_defects(database, settings, inspector, images, progress)[1]


def embed_defects(
    database: Database,
    settings: Settings,
    inspector: Inspector,
    images: Sequence[StoredImage],
    progress: Progress = silent,
) -> tuple[int, list[tuple[str, str]]]:
    """Make the defect embeddings of stored images; returns how many, and failures."""
    detector, finder = inspector.detector, inspector.defect_finder
    if len(images) >= MANY:
        inspector = Inspector(database, settings, detector.category, "exact", PATCHCORE)
    todo = by_input_size(images, inspector.preprocessing)
    failed: list[tuple[str, str]] = []

    def on_error(index: int, error: ImageError) -> None:
        failed.append((todo[index].path, str(error)))

    made = 0
    for batch in inspector.judge([image.path for image in todo], on_error, only_unchanged(todo)):
        ids = [todo[index].id for index, _ in batch]
        database.transact(partial(_store, finder, detector, ids, [judged for _, judged in batch]))
        made += len(ids)
        progress("embed", made + len(failed), len(todo))
    return made, failed


def _store(
    finder: DefectFinder,
    detector: Detector,
    image_ids: Sequence[int],
    judged: Sequence[Judged],
    connection: Connection,
) -> None:
    keep_detector(connection, detector.id)
    lock_images(connection, image_ids)
    there = stored_images(connection, list(image_ids))
    defects = {
        image_id: finder.defect(connection, item.embedded_patches)
        for image_id, item in zip(image_ids, judged, strict=True)
        if image_id in there and there[image_id].sha256 == item.file.sha256
    }
    store_defects(
        connection, detector.extractor_id, detector.id, list(defects), list(defects.values())
    )
