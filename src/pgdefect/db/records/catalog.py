"""Categories, image roots and images: adding, finding, describing, moving."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any

from sqlalchemy import Connection, delete, func, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert

from pgdefect.core.errors import Conflict, NotFound
from pgdefect.db.connection.engine import Database
from pgdefect.db.records.detectors import unknown_category
from pgdefect.db.schema.models import Category, Image, ImageRoot

COMPUTED_TABLES = (
    "image_embedding",
    "defect_embedding",
    "defect_region",
    "image_patches",
)
"""Those with what was computed from an image's content, besides what was judged of it."""
REPLACED = ".replaced-"
"""Between the path and the number of an image whose file has another content since."""
_ROOTS_LOCK = "hashtextextended('pgdefect image roots', 0)"
Description = tuple[
    str, str | None, str | None, str | None, str | None, Mapping[str, Any], datetime | None
]
"""What is said of an image: split, label, defect type, mask, part, attributes, time taken."""


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
    taken_at: datetime | None = None

    @property
    def description(self) -> Description:
        return (
            self.split,
            self.label,
            self.defect_type,
            self.mask_path,
            self.group_name,
            dict(self.attributes or {}),
            self.taken_at,
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
    """Delete image roots that no image lies under, unless another session is adding one there."""

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


def category_names(connection: Connection) -> list[str]:
    """The names of all categories, in order."""
    return list(connection.scalars(select(Category.name).order_by(Category.name)))


@dataclass(frozen=True)
class GrayScaleRow:
    """A category's gray scale, and whether its first images are all recorded."""

    white: Mapping[str, float | None] | None
    settled: bool


def gray_scale(connection: Connection, category: str) -> GrayScaleRow:
    """The gray scale of a category; one of nothing for a category there is not yet."""
    row = connection.execute(
        select(Category.gray_scale, Category.gray_scale_settled).where(Category.name == category)
    ).one_or_none()
    return GrayScaleRow(row[0], row[1]) if row else GrayScaleRow(None, False)


def widen_gray_scale(
    connection: Connection, category: int, white: Mapping[str, float | None]
) -> None:
    """Store the larger of two scales, kind by kind; a settled one stays."""
    connection.execute(
        text(
            "UPDATE pgdefect.category SET gray_scale = ("
            "SELECT jsonb_object_agg(kind, white) FROM ("
            "SELECT key AS kind, max(value::double precision) AS white FROM ("
            "SELECT * FROM jsonb_each_text(coalesce(gray_scale, '{}'::jsonb)) UNION ALL "
            "SELECT * FROM jsonb_each_text(CAST(:white AS jsonb))) both_scales GROUP BY key) w) "
            "WHERE id = :category AND NOT gray_scale_settled"
        ),
        {"category": category, "white": json.dumps(dict(white))},
    )


def settle_gray_scale(connection: Connection, category: str) -> None:
    """Its first images are recorded: later ones are read by the scale, and change it no more."""
    connection.execute(
        update(Category)
        .where(Category.name == category, ~Category.gray_scale_settled)
        .values(gray_scale_settled=True)
    )


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
            Image.taken_at,
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


def recorded_at(connection: Connection, category: int, paths: Iterable[str]) -> dict[str, int]:
    """Ids of a category's images by absolute path, of those that are recorded under any root."""
    places = [
        (path, str(above), str(PurePosixPath(path).relative_to(above)))
        for path in paths
        for above in PurePosixPath(path).parents
    ]
    if not places:
        return {}
    rows = connection.execute(
        text(
            "SELECT p.whole, i.id "
            "FROM unnest(CAST(:wholes AS text[]), CAST(:roots AS text[]), CAST(:paths AS text[])) "
            "p(whole, root, path) "
            "JOIN pgdefect.image_root r ON r.path = p.root "
            "JOIN pgdefect.image i "
            "ON i.category_id = :category AND i.root_id = r.id AND i.path = p.path"
        ),
        {
            "category": category,
            "wholes": [place[0] for place in places],
            "roots": [place[1] for place in places],
            "paths": [place[2] for place in places],
        },
    )
    return {whole: id_ for whole, id_ in rows}


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
    # Ignore only this conflict: a duplicate id (a sequence that was reset) must raise.
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
    split, label, defect_type, mask_path, group_name, attributes, taken_at = description
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
            taken_at=taken_at,
        )
    )


def add_context(
    connection: Connection,
    image_id: int,
    attributes: Mapping[str, Any],
    part: str | None,
    taken_at: datetime | None,
) -> bool:
    """Add what is known of a production image to what was recorded.

    Returns False, and changes nothing, where that contradicts what was recorded. The caller
    has the image locked.
    """
    found = connection.execute(
        text(
            "UPDATE pgdefect.image SET attributes = attributes || a.said, "
            "group_name = coalesce(group_name, CAST(:part AS text)), "
            "taken_at = coalesce(taken_at, CAST(:taken AS timestamptz)) "
            "FROM (SELECT CAST(:attributes AS jsonb) AS said) a "
            "WHERE id = :id AND attributes || a.said = a.said || attributes "
            "AND coalesce(group_name = :part, true) AND coalesce(taken_at = :taken, true)"
        ),
        {"id": image_id, "attributes": json.dumps(dict(attributes)), "part": part}
        | {"taken": taken_at},
    )
    return found.rowcount == 1


def replace_content(connection: Connection, image_id: int, image: NewImage) -> int:
    """Accept a changed file: new hash and size.

    What was judged or reviewed stays as it was: its row is retired, under a path that says so,
    with all that was computed from the old content, and the new content gets a row of its own.
    Where nothing was, the row takes the new content, and what was computed from the old one goes.
    The caller has the image locked.

    Returns:
        The id of the image that the path is now.
    """
    if _has_history(connection, image_id):
        return _retire_replaced(connection, image_id, image)
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
    return image_id


def _has_history(connection: Connection, image_id: int) -> bool:
    return bool(
        connection.scalar(
            text(
                "SELECT EXISTS (SELECT FROM pgdefect.inspection WHERE image_id = :id) "
                "OR EXISTS (SELECT FROM pgdefect.review WHERE image_id = :id)"
            ),
            {"id": image_id},
        )
    )


def _retire_replaced(connection: Connection, image_id: int, image: NewImage) -> int:
    """Retire an image under another path, and add one with the new content under its own."""
    old = connection.execute(
        select(Image.category_id, Image.root_id, Image.path).where(Image.id == image_id)
    ).one()
    connection.execute(
        update(Image)
        .where(Image.id == image_id)
        .values(
            path=f"{old.path}{REPLACED}{image_id}",
            retired_at=func.coalesce(Image.retired_at, func.now()),
        )
    )
    [added] = add_images(connection, old.category_id, old.root_id, [replace(image, path=old.path)])
    return added


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
