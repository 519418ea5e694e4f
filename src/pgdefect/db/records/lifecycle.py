"""Detectors, categories and images: activate, retire and delete."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, delete, func, select, text, update

from pgdefect.core.errors import Conflict, UnknownDetector
from pgdefect.db.access.roles import require_owner
from pgdefect.db.connection.engine import Database
from pgdefect.db.connection.row_locks import lock_category, lock_images
from pgdefect.db.records.catalog import category_id, delete_unused_roots
from pgdefect.db.schema.bank_tables import BANK_TABLES, partition_name
from pgdefect.db.schema.models import Category, DetectorRow, Image


def find_detector(connection: Connection, detector_id: int) -> tuple[int, str, str]:
    """The category's id and name, and the detector's kind. Raises UnknownDetector."""
    row = connection.execute(
        select(Category.id, Category.name, DetectorRow.kind)
        .join(DetectorRow, DetectorRow.category_id == Category.id)
        .where(DetectorRow.id == detector_id)
    ).one_or_none()
    if row is None:
        ids = connection.scalars(select(DetectorRow.id).order_by(DetectorRow.id)).all()
        listing = ", ".join(map(str, ids)) if ids else "there is none yet"
        raise UnknownDetector(f"no detector {detector_id}; known: {listing}")
    return row[0], row[1], row[2]


def activate_detector(database: Database, detector_id: int) -> str:
    """Make a detector its category's active one of its kind; returns the category's name."""

    def work(connection: Connection) -> str:
        row = find_detector(connection, detector_id)
        lock_category(connection, row[0])
        connection.execute(
            update(DetectorRow)
            .where(
                DetectorRow.category_id == row[0],
                DetectorRow.kind == row[2],
                DetectorRow.active,
                DetectorRow.id != detector_id,
            )
            .values(active=False)
        )
        changed = connection.execute(
            update(DetectorRow)
            .where(DetectorRow.id == detector_id)
            .values(active=True, state="ready")
        )
        if not changed.rowcount:
            raise Conflict(
                f"detector {detector_id} was deleted in the meantime; the active one stays"
            )
        return row[1]

    return database.transact(work)


def retire_detector(database: Database, detector_id: int) -> str:
    """Put a detector out of use; its inspections stay. Returns the category's name."""
    with database.begin() as connection:
        row = find_detector(connection, detector_id)
        connection.execute(
            update(DetectorRow)
            .where(DetectorRow.id == detector_id)
            .values(active=False, state="retired")
        )
        return row[1]


def set_images_retired(connection: Connection, image_ids: Iterable[int], retired: bool) -> int:
    """Take images out of training and search, or back in; returns how many changed."""
    image_ids = list(image_ids)
    lock_images(connection, image_ids)
    result = connection.execute(
        update(Image)
        .where(
            Image.id.in_(image_ids),
            Image.retired_at.is_(None) if retired else Image.retired_at.is_not(None),
        )
        .values(retired_at=func.now() if retired else None)
    )
    return result.rowcount


def set_category_retired(database: Database, name: str, retired: bool) -> None:
    """Hide a category from searches across categories, or show it again."""
    with database.begin() as connection:
        connection.execute(
            update(Category)
            .where(Category.id == category_id(connection, name))
            .values(retired_at=func.now() if retired else None)
        )


def delete_detector(database: Database, detector_id: int) -> None:
    """Delete a detector with its bank and inspections; running it again finishes a broken one.

    The partition is detached concurrently first, so that readers of other banks never
    wait; dropping it and deleting the rows is one transaction.
    """
    with database.connect() as connection:
        find_detector(connection, detector_id)
    require_owner(database, "deleting a detector")
    retire_detector(database, detector_id)
    _detach(database, detector_id)

    def work(connection: Connection) -> None:
        connection.execute(text("SET LOCAL lock_timeout = '30s'"))
        for parent in BANK_TABLES:
            table = partition_name(detector_id, parent)
            connection.execute(text(f"DROP TABLE IF EXISTS pgdefect.{table}"))
        connection.execute(delete(DetectorRow).where(DetectorRow.id == detector_id))

    database.transact(work)


def delete_category(database: Database, name: str) -> None:
    """Delete a category with its detectors, images and inspections."""
    with database.connect() as connection:
        category = category_id(connection, name)
        detectors = connection.scalars(
            select(DetectorRow.id).where(DetectorRow.category_id == category)
        ).all()
    for detector_id in detectors:
        delete_detector(database, detector_id)

    def work(connection: Connection) -> None:
        # From here on nothing can be added to the category.
        lock_category(connection, category, to_delete=True)
        if connection.scalar(select(func.count()).where(DetectorRow.category_id == category)):
            raise Conflict(f"category {name!r} was trained in the meantime; delete it again")
        images = connection.scalars(select(Image.id).where(Image.category_id == category))
        lock_images(connection, images, to_delete=True)
        connection.execute(delete(Image).where(Image.category_id == category))
        connection.execute(delete(Category).where(Category.id == category))

    database.transact(work)
    delete_unused_roots(database)


def delete_image(database: Database, image_id: int) -> None:
    """Delete an image with its embeddings and inspections.

    Raises Conflict while a memory bank holds vectors that came from it.
    """

    def work(connection: Connection) -> None:
        # A training that is storing its bank has the row locked; then look at its bank too.
        lock_images(connection, [image_id], to_delete=True)
        banks = connection.scalars(
            text(
                "SELECT DISTINCT bank_id FROM pgdefect.memory_bank_patch WHERE image_id = :id "
                "ORDER BY bank_id"
            ),
            {"id": image_id},
        ).all()
        if banks:
            listing = ", ".join(str(bank) for bank in banks)
            raise Conflict(
                f"image {image_id} is part of memory bank {listing}; retire the image and train "
                "again, or delete the detector first"
            )
        connection.execute(delete(Image).where(Image.id == image_id))

    database.transact(work)


def _detach(database: Database, detector_id: int) -> None:
    with database.autocommit() as connection:
        connection.execute("SET lock_timeout = '30s'")
        # A parent can have one partition that is being detached, no more.
        connection.execute("SELECT pg_advisory_lock(hashtextextended('pgdefect detach', 0))")
        for parent in BANK_TABLES:
            # A detachment that was interrupted, of this bank or another, must be finished first.
            rows = connection.execute(
                "SELECT inhrelid::regclass::text, inhdetachpending FROM pg_inherits "
                "WHERE inhparent = %s::regclass "
                "AND (inhdetachpending OR inhrelid = to_regclass(%s)) "
                "ORDER BY inhdetachpending DESC",
                [f"pgdefect.{parent}", f"pgdefect.{partition_name(detector_id, parent)}"],
            ).fetchall()
            for partition, pending in rows:
                connection.execute(
                    f"ALTER TABLE pgdefect.{parent} DETACH PARTITION {partition} "
                    + ("FINALIZE" if pending else "CONCURRENTLY")
                )
