"""Categories and images: adding, listing, retiring, deleting."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, func, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert

from pgdefect.db.banks import BANK_TABLES, partition_name
from pgdefect.db.detectors import unknown_category
from pgdefect.db.engine import Database
from pgdefect.db.models import Category, Detector, Image, ImageRoot
from pgdefect.db.order import lock_category, lock_images
from pgdefect.db.roles import require_owner
from pgdefect.errors import Conflict, NotFound, UnknownDetector

COMPUTED_TABLES = (
    "image_embedding",
    "defect_embedding",
    "defect_region",
    "image_patches",
    "inspection",
)
"""Those with what was computed from an image's content."""
_ROOTS_LOCK = "hashtextextended('pgdefect image roots', 0)"
Description = tuple[str, str | None, str | None, str | None, str | None, Mapping[str, Any]]
"""What is said of an image: split, label, defect type, mask, group, attributes."""


@dataclass(frozen=True)
class NewImage:
    """A row of ``image`` to be; path is relative to the root.

    simulation tells how a simulated defect was made; only and always with that split.
    """

    path: str
    sha256: str
    num_bytes: int
    height: int
    width: int
    split: str
    label: str | None = None
    defect_type: str | None = None
    mask_path: str | None = None
    group_name: str | None = None
    attributes: Mapping[str, Any] | None = None
    simulation: Mapping[str, Any] | None = None

    @property
    def description(self) -> Description:
        return (
            self.split,
            self.label,
            self.defect_type,
            self.mask_path,
            self.group_name,
            dict(self.attributes or {}),
        )


@dataclass(frozen=True)
class KnownImage:
    """What tells whether a file on disk is the one that was ingested."""

    id: int
    path: str
    sha256: str
    retired: bool
    description: Description


def ensure_category(connection: Connection, name: str) -> int:
    """The category's id; it is made when it is new."""
    while True:
        connection.execute(
            insert(Category).values(name=name).on_conflict_do_nothing(index_elements=["name"])
        )
        found = connection.scalar(select(Category.id).where(Category.name == name))
        if found is not None:  # else somebody has deleted it between the two
            return found


def ensure_root(connection: Connection, path: str) -> int:
    """The id of an image root; it is made when it is new, and stays until the transaction ends.

    Who needs several takes them in the order of their paths.
    """
    connection.execute(text(f"SELECT pg_advisory_xact_lock_shared({_ROOTS_LOCK})"))
    connection.execute(
        insert(ImageRoot).values(path=path).on_conflict_do_nothing(index_elements=["path"])
    )
    return connection.execute(select(ImageRoot.id).where(ImageRoot.path == path)).scalar_one()


def delete_unused_roots(database: Database) -> None:
    """Delete image roots that no image lies under, when nobody is about to add one there."""

    def work(connection: Connection) -> None:
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_ROOTS_LOCK})"))
        connection.execute(
            delete(ImageRoot).where(~select(Image.id).where(Image.root_id == ImageRoot.id).exists())
        )

    database.transact(work)


def category_id(connection: Connection, name: str) -> int:
    """Raises :class:`UnknownCategory`, naming those there are."""
    found = connection.scalar(select(Category.id).where(Category.name == name))
    if found is None:
        known = connection.scalars(select(Category.name).order_by(Category.name)).all()
        raise unknown_category(name, known)
    return found


def known_images(connection: Connection, category: str, root: str) -> dict[str, KnownImage]:
    """A category's images under one root, by relative path; empty where either is new.

    Simulated ones are left out: they belong to no data set.
    """
    rows = connection.execute(
        select(
            Image.path,
            Image.id,
            Image.sha256,
            Image.retired_at,
            Image.split,
            Image.label,
            Image.defect_type,
            Image.mask_path,
            Image.group_name,
            Image.attributes,
        )
        .join(Category, Category.id == Image.category_id)
        .join(ImageRoot, ImageRoot.id == Image.root_id)
        .where(Category.name == category, ImageRoot.path == root, Image.split != "simulated")
    )
    return {
        path: KnownImage(id_, path, sha256, retired_at is not None, tuple(description))
        for path, id_, sha256, retired_at, *description in rows
    }


def known_elsewhere(connection: Connection, category: str, root: str) -> dict[str, str]:
    """Where a category's images in folders around `root` or within it lie, and under which root.

    Absolute paths, of all that are recorded under a root that holds `root` or lies in it.
    """
    around = func.starts_with(root, ImageRoot.path + "/")
    within = func.starts_with(ImageRoot.path, root + "/")
    rows = connection.execute(
        select(ImageRoot.path, Image.path)
        .join(Category, Category.id == Image.category_id)
        .join(ImageRoot, ImageRoot.id == Image.root_id)
        .where(Category.name == category, or_(around, within), Image.split != "simulated")
    )
    return {f"{other}/{path}": other for other, path in rows}


def insert_images(
    connection: Connection, category: int, root: int, images: Sequence[NewImage]
) -> set[str]:
    """Insert images; returns the paths of those that were not there yet, the others stay.

    Who inserts under several roots takes them in the order of their paths, too.
    """
    if not images:
        return set()
    values = [
        {
            "category_id": category,
            "root_id": root,
            **{key: getattr(image, key) for key in NewImage.__dataclass_fields__},
            "attributes": dict(image.attributes or {}),
        }
        # Two who add the same images wait for each other, each in the same order.
        for image in sorted(images, key=lambda image: image.path)
    ]
    # Of this only: an id given out twice (a sequence set back) is an error, and no image less.
    same = ["category_id", "root_id", "path"]
    new = insert(Image).on_conflict_do_nothing(index_elements=same).returning(Image.path)
    return set(connection.scalars(new, values))


def add_images(
    connection: Connection, category: int, root: int, images: Sequence[NewImage]
) -> list[int]:
    """Insert images and return their ids, in order; one that is there already keeps its row."""
    insert_images(connection, category, root, images)
    if not images:
        return []
    rows = connection.execute(
        select(Image.path, Image.id).where(
            Image.category_id == category,
            Image.root_id == root,
            Image.path.in_([image.path for image in images]),
        )
    )
    ids: dict[str, int] = {path: id_ for path, id_ in rows}
    return [ids[image.path] for image in images]


def describe_again(connection: Connection, image_id: int, description: Description) -> None:
    """Accept what a data set now says of an image whose content is the same."""
    split, label, defect_type, mask_path, group_name, attributes = description
    connection.execute(
        update(Image)
        .where(Image.id == image_id)
        .values(
            split=split,
            label=label,
            defect_type=defect_type,
            mask_path=mask_path,
            group_name=group_name,
            attributes=dict(attributes),
        )
    )


def replace_content(connection: Connection, image_id: int, image: NewImage) -> None:
    """Accept a changed file: new hash and size; what was computed from the old one goes."""
    connection.execute(
        update(Image)
        .where(Image.id == image_id)
        .values(
            sha256=image.sha256,
            num_bytes=image.num_bytes,
            height=image.height,
            width=image.width,
            retired_at=None,
        )
    )
    for table in COMPUTED_TABLES:
        connection.execute(
            text(f"DELETE FROM pgdefect.{table} WHERE image_id = :id"), {"id": image_id}
        )


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


def image_roots(connection: Connection) -> list[str]:
    """The folders that images were ingested from, in order."""
    return list(connection.scalars(select(ImageRoot.path).order_by(ImageRoot.path)))


def move_root(database: Database, old: str, new: str) -> int:
    """Re-point an image root; returns how many images it holds.

    Raises NotFound, listing the roots there are, and Conflict if `new` is one already.
    """
    with database.begin() as connection:
        root = connection.scalar(select(ImageRoot.id).where(ImageRoot.path == old))
        if root is None:
            listing = ", ".join(image_roots(connection)) or "there is none yet"
            raise NotFound(f"no images were ingested from {old}; known roots: {listing}")
        if connection.scalar(select(ImageRoot.id).where(ImageRoot.path == new)) is not None:
            raise Conflict(f"{new} is an image root already; delete its images first")
        connection.execute(update(ImageRoot).where(ImageRoot.id == root).values(path=new))
        return (
            connection.scalar(select(func.count()).select_from(Image).where(Image.root_id == root))
            or 0
        )


def find_detector(connection: Connection, detector_id: int) -> tuple[int, str, str]:
    """The category's id and name, and the detector's kind. Raises UnknownDetector."""
    row = connection.execute(
        select(Category.id, Category.name, Detector.kind)
        .join(Detector, Detector.category_id == Category.id)
        .where(Detector.id == detector_id)
    ).one_or_none()
    if row is None:
        ids = connection.scalars(select(Detector.id).order_by(Detector.id)).all()
        listing = ", ".join(map(str, ids)) if ids else "there is none yet"
        raise UnknownDetector(f"no detector {detector_id}; known: {listing}")
    return row[0], row[1], row[2]


def activate_detector(database: Database, detector_id: int) -> str:
    """Make a detector its category's active one of its kind; returns the category's name."""

    def work(connection: Connection) -> str:
        row = find_detector(connection, detector_id)
        lock_category(connection, row[0])
        connection.execute(
            update(Detector)
            .where(
                Detector.category_id == row[0],
                Detector.kind == row[2],
                Detector.active,
                Detector.id != detector_id,
            )
            .values(active=False)
        )
        changed = connection.execute(
            update(Detector).where(Detector.id == detector_id).values(active=True, state="ready")
        )
        if not changed.rowcount:
            raise Conflict(f"detector {detector_id} was deleted meanwhile; the active one stays")
        return row[1]

    return database.transact(work)


def retire_detector(database: Database, detector_id: int) -> str:
    """Put a detector out of use; its inspections stay. Returns the category's name."""
    with database.begin() as connection:
        row = find_detector(connection, detector_id)
        connection.execute(
            update(Detector).where(Detector.id == detector_id).values(active=False, state="retired")
        )
        return row[1]


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
        connection.execute(delete(Detector).where(Detector.id == detector_id))

    database.transact(work)


def delete_category(database: Database, name: str) -> None:
    """Delete a category with its detectors, images and inspections."""
    with database.connect() as connection:
        category = category_id(connection, name)
        detectors = connection.scalars(
            select(Detector.id).where(Detector.category_id == category)
        ).all()
    for detector_id in detectors:
        delete_detector(database, detector_id)

    def work(connection: Connection) -> None:
        # From here on nothing can be added to the category.
        lock_category(connection, category, to_delete=True)
        if connection.scalar(select(func.count()).where(Detector.category_id == category)):
            raise Conflict(f"category {name!r} was trained meanwhile; delete it again")
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
