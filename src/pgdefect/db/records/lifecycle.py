"""Detectors, categories and images: activate, retire and delete."""

from __future__ import annotations

import time
from collections.abc import Iterable

from sqlalchemy import Connection, delete, func, select, text, update

from pgdefect.core.detector_kinds import kind_named
from pgdefect.core.errors import Busy, Conflict, UnknownDetector
from pgdefect.core.wording import command
from pgdefect.db.access.roles import require_owner
from pgdefect.db.connection.engine import Database
from pgdefect.db.connection.lock_wait import LOCK_WAIT, waiting_for_locks
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
    """Make a detector its category's active one of its kind; returns the category's name.

    Raises:
        UnknownDetector: there is none of that number.
        Conflict: it was deleted meanwhile, or its bank or network is not whole.
    """

    def work(connection: Connection) -> str:
        row = find_detector(connection, detector_id)
        lock_category(connection, row[0])
        _require_whole(connection, detector_id, row[2])
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


def _require_whole(connection: Connection, detector_id: int, kind: str) -> None:
    """Refuse a detector whose deletion was begun, or whose vectors or network are missing."""
    lacking, found = False, ""
    if kind_named(kind).has_network:
        lacking = not connection.scalar(
            text("SELECT EXISTS (SELECT FROM pgdefect.detector_model WHERE detector_id = :id)"),
            {"id": detector_id},
        )
        found = "no network is stored for it"
    if kind_named(kind).has_bank:
        stored, attached, counted = connection.execute(
            text(
                "SELECT (SELECT num_vectors FROM pgdefect.memory_bank WHERE id = :id), "
                "EXISTS (SELECT FROM pg_inherits WHERE NOT inhdetachpending "
                "AND inhparent = 'pgdefect.memory_bank_patch'::regclass "
                "AND inhrelid = to_regclass(:partition)), "
                "(SELECT count(*) FROM pgdefect.memory_bank_patch WHERE bank_id = :id)"
            ),
            {"id": detector_id, "partition": f"pgdefect.{partition_name(detector_id)}"},
        ).one()
        lacking = stored is None or not attached or counted != stored
        found = f"{counted:,} of its {stored or 0:,} vectors are in the memory bank" + (
            "" if attached else ", whose partition is detached: its deletion was begun"
        )
    if lacking:
        raise Conflict(
            f"detector {detector_id} is not whole, and the active one stays: {found}. Train the "
            f"category again, or finish with: {command('delete', detector=detector_id, yes=True)}"
        )


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
    wait; dropping it and deleting the rows is one transaction. Transactions that already hold
    memory banks are waited for before anything is changed.

    Raises:
        UnknownDetector, PermissionDenied: there is none, or this login may not delete.
        Busy: a transaction held memory banks for too long; the message names the session, and
            says whether anything was changed.
    """
    with database.connect() as connection:
        find_detector(connection, detector_id)
    require_owner(database, "deleting a detector")
    _wait_for_holders(database, detector_id)
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

    Raises:
        Conflict: while a memory bank holds vectors that came from it.
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


def _wait_for_holders(database: Database, detector_id: int) -> None:
    """Wait for the transactions that detaching would wait for, while nothing is changed yet.

    Detaching cannot be taken back once it has begun.
    """
    names = [f"pgdefect.{parent}" for parent in BANK_TABLES]
    names += [f"{name}_{detector_id}" for name in names]
    deadline = time.monotonic() + LOCK_WAIT
    with database.autocommit() as connection:

        def holders() -> dict[str, str]:
            rows = connection.execute(
                "SELECT DISTINCT l.virtualtransaction, format('server process %%s (%%s)', l.pid, "
                "concat_ws(', ', 'login ' || a.usename, nullif(a.application_name, ''), a.state, "
                "'in a transaction since ' || date_trunc('second', a.xact_start))) "
                "FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid) "
                "WHERE l.locktype = 'relation' AND l.granted AND l.pid <> pg_backend_pid() "
                "AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
                "AND l.relation IN (SELECT to_regclass(n)::oid FROM unnest(%s::text[]) n)",
                [names],
            ).fetchall()
            return dict(rows)

        waited_for = holders()
        while waited_for:
            if time.monotonic() > deadline:
                raise Busy(
                    f"deleting detector {detector_id} gave up after {LOCK_WAIT:g} seconds of "
                    f"waiting for memory banks, held by {'; '.join(waited_for.values())}. Nothing "
                    "was changed. Have that end, or end it with pg_terminate_backend, and run the "
                    "command again"
                )
            time.sleep(0.1)
            # Those that came later are not in the way: each is short, or is found at its turn.
            now = holders()
            waited_for = {key: words for key, words in waited_for.items() if key in now}


def _detach(database: Database, detector_id: int) -> None:
    done = (
        "The detector is retired and its bank half detached: it cannot be activated, and running "
        "the command again finishes the deletion"
    )
    task = f"deleting detector {detector_id}"
    with (
        database.autocommit() as connection,
        waiting_for_locks(database, connection, task, LOCK_WAIT, done),
    ):
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
