"""Images with simulated defects: what they are made from, finding and removing them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, select, text

from pgdefect.db.connection.engine import Database
from pgdefect.db.connection.row_locks import lock_images
from pgdefect.db.records import catalog
from pgdefect.db.records.catalog import NewImage
from pgdefect.db.records.delete_preview import Dependents
from pgdefect.db.schema.models import HoldoutScore, Image, ImageRoot


@dataclass(frozen=True)
class SimulatedFile:
    """A simulated image that is recorded: where it and its mask lie under a root."""

    id: int
    root: str
    path: str
    mask_path: str | None
    sha256: str
    source_image_id: int


def simulated_files(database: Database, category: str) -> list[SimulatedFile]:
    """A category's simulated images, retired ones too, by path."""
    with database.connect() as connection:
        return _files(connection, catalog.category_id(connection, category))


def held_out_scores(database: Database, detector_id: int) -> dict[int, float]:
    """Raw scores by id of the normal training images that set a detector's threshold."""
    with database.connect() as connection:
        rows = connection.execute(
            select(HoldoutScore.image_id, HoldoutScore.raw_score).where(
                HoldoutScore.detector_id == detector_id
            )
        )
        return {row.image_id: row.raw_score for row in rows}


def simulated_paths(connection: Connection) -> set[str]:
    """Where the simulated images of all categories lie, and their masks."""
    rows = connection.execute(
        select(ImageRoot.path, Image.path, Image.mask_path)
        .join(ImageRoot, ImageRoot.id == Image.root_id)
        .where(Image.split == "simulated")
    )
    return {f"{root}/{path}" for root, *paths in rows for path in paths if path is not None}


def simulated_digests(connection: Connection, digests: Sequence[str]) -> set[str]:
    """Those sha256 that are of a simulated image, of any category."""
    found = select(Image.sha256).where(Image.sha256.in_(digests), Image.split == "simulated")
    return set(connection.scalars(found))


def add_simulated(
    connection: Connection, category: int, root: str, images: Sequence[NewImage]
) -> list[int]:
    """Record simulated images under a root; returns their ids, in order."""
    return catalog.add_images(connection, category, catalog.ensure_root(connection, root), images)


def simulated_dependents(database: Database, category: str) -> Dependents:
    """What removing a category's simulated images would take with them."""
    with database.connect() as connection:
        row = connection.execute(
            text("""
            WITH i AS (SELECT id FROM pgdefect.image
                       WHERE category_id = :category AND split = 'simulated')
            SELECT (SELECT count(*) FROM i),
                   (SELECT count(*) FROM pgdefect.inspection WHERE image_id IN (SELECT id FROM i)),
                   (SELECT count(*) FROM pgdefect.image_embedding
                    WHERE image_id IN (SELECT id FROM i))"""),
            {"category": catalog.category_id(connection, category)},
        ).one()
    images, inspections, embeddings = (int(value) for value in row)
    subject = f"simulated defects of {category}"
    return Dependents(subject, images, inspections=inspections, embeddings=embeddings)


def delete_simulated(database: Database, category: str) -> list[SimulatedFile]:
    """Delete a category's simulated images with their embeddings and inspections.

    Returns what was deleted; the files are the caller's to remove.
    """

    def work(connection: Connection) -> list[SimulatedFile]:
        gone = _files(connection, catalog.category_id(connection, category))
        ids = [file.id for file in gone]
        lock_images(connection, ids, to_delete=True)
        connection.execute(text("DELETE FROM pgdefect.image WHERE id = ANY(:ids)"), {"ids": ids})
        return gone

    gone = database.transact(work)
    catalog.delete_unused_roots(database)
    return gone


def _files(connection: Connection, category: int) -> list[SimulatedFile]:
    rows = connection.execute(
        select(
            Image.id,
            ImageRoot.path,
            Image.path,
            Image.mask_path,
            Image.sha256,
            Image.simulation["source_image_id"].as_integer(),
        )
        .join(ImageRoot, ImageRoot.id == Image.root_id)
        .where(Image.category_id == category, Image.split == "simulated")
        .order_by(ImageRoot.path, Image.path)
    )
    return [SimulatedFile(*row) for row in rows]
