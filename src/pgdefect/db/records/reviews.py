"""What people say of images: storing it, its history, and whose review would help most."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from pgdefect.core.errors import Conflict
from pgdefect.core.types import StoredImage
from pgdefect.db.connection.engine import Database, driver
from pgdefect.db.search.queries import find_image


@dataclass(frozen=True)
class Review:
    """One row of ``defect.reviews``; in_force: the newest of its image that was not withdrawn."""

    review_id: int
    image_id: int
    category: str
    path: str
    label: str
    defect_type: str | None
    note: str | None
    reviewer: str
    created_at: datetime
    in_force: bool
    withdrawn_at: datetime | None
    withdrawn_by: str | None


@dataclass(frozen=True)
class QueuedImage:
    """One row of ``defect.review_queue``; priority and its four parts lie between 0 and 1.

    Attributes:
        outlier: a training image that scored far outside the rest; these come first.
    """

    image_id: int
    category: str
    path: str
    priority: float
    reason: str
    verdict: str
    normalized_score: float
    known_label: str | None
    probable_defect_type: str | None
    vote: dict[str, Any] | None
    near_threshold: float
    vote_doubt: float | None
    novelty: float | None
    contradiction: float
    outlier: bool


@dataclass(frozen=True)
class Reviewed:
    """A review that was just stored, and the image as it was known before.

    Attributes:
        learned_vectors: how many vectors the category's active memory bank holds of the image.
    """

    review: Review
    before: StoredImage
    verdict: str | None
    normalized_score: float | None
    learned_vectors: int = 0


def review_image(
    database: Database,
    word: str,
    label: str,
    *,
    defect_type: str | None = None,
    note: str | None = None,
    new_type: bool = False,
) -> Reviewed:
    """Keep what a person says of a stored image; counts, filters and votes go by it at once.

    word is a file, an id, the end of a path, or the start of a sha256.

    Raises:
        UnknownImage, Conflict: it names no stored image, or several;
        UsageError: a label there is not, or a defect type of a normal image;
        Conflict: the defect type looks like a known one misspelt, and not `new_type`; or the
        defect is simulated.
    """
    before = _find(database, word)

    def work(connection: Connection) -> tuple[int, str | None, float | None, int]:
        row = (
            driver(connection)
            .execute(
                "SELECT defect.review(%s::text, %s, %s, %s, %s)",
                [str(before.id), label, defect_type, note, new_type],
            )
            .fetchone()
        )
        assert row is not None
        said = connection.execute(
            text("SELECT verdict, normalized_score FROM defect.images WHERE image_id = :id"),
            {"id": before.id},
        ).one()
        learned = connection.scalar(
            text(
                "SELECT count(*) FROM pgdefect.detector d JOIN pgdefect.category c "
                "ON c.id = d.category_id AND c.name = :category "
                "JOIN pgdefect.memory_bank_patch p ON p.bank_id = d.id AND p.image_id = :id "
                "WHERE d.active"
            ),
            {"id": before.id, "category": before.category},
        )
        return row[0], said.verdict, said.normalized_score, learned or 0

    review_id, verdict, score, learned = database.transact(work)
    [review] = [r for r in _history(database, before.id) if r.review_id == review_id]
    return Reviewed(review, before, verdict, score, learned)


def withdraw_review(
    database: Database, word: str, *, note: str | None = None
) -> tuple[Review, StoredImage]:
    """Take back the review of an image that is in force; the one before it counts again.

    Args:
        database: with a login of a writer.
        word: a file, an id, the end of a path, or the start of a sha256.
        note: why.

    Returns:
        The review, and the image as it is known now.

    Raises:
        UnknownImage, Conflict: it names no stored image, or several.
        Conflict: no review of the image is in force.
    """
    image = _find(database, word)
    in_force = [review for review in _history(database, image.id) if review.in_force]
    if not in_force:
        raise Conflict(f"no review of image {image.id} is in force ({image.path})")

    def work(connection: Connection) -> None:
        driver(connection).execute(
            "SELECT defect.withdraw_review(%s, %s)", [in_force[0].review_id, note]
        )

    database.transact(work)
    return in_force[0], _find(database, str(image.id))


def review_history(database: Database, word: str) -> tuple[StoredImage, list[Review]]:
    """A stored image and all that was said of it, newest first; `word` as in `review_image`."""
    image = _find(database, word)
    return image, _history(database, image.id)


def review_queue(
    database: Database, category: str | None = None, limit: int = 20
) -> list[QueuedImage]:
    """The images whose review would help most, of one category or all.

    Raises UnknownCategory.
    """
    with database.connect() as connection:
        if category is not None:
            from pgdefect.db.records.catalog import category_id

            category_id(connection, category)
        rows = connection.execute(
            text(
                "SELECT image_id, category, path, priority, reason, verdict, normalized_score, "
                "known_label, probable_defect_type, vote, near_threshold, vote_doubt, novelty, "
                "contradiction, outlier FROM defect.review_queue "
                "WHERE CAST(:category AS text) IS NULL OR category = :category "
                "ORDER BY outlier DESC, priority DESC, normalized_score DESC, image_id LIMIT :limit"
            ).bindparams(category=category, limit=limit)
        )
        return [QueuedImage(*row) for row in rows]


def _find(database: Database, word: str) -> StoredImage:
    return find_image(database, os.path.abspath(word) if os.path.lexists(word) else word)


def _history(database: Database, image_id: int) -> list[Review]:
    with database.connect() as connection:
        rows = connection.execute(
            text(
                "SELECT review_id, image_id, category, path, label, defect_type, note, reviewer, "
                "created_at, in_force, withdrawn_at, withdrawn_by FROM defect.reviews "
                "WHERE image_id = :id "
                "ORDER BY created_at DESC, review_id DESC"
            ),
            {"id": image_id},
        )
        return [Review(*row) for row in rows]
