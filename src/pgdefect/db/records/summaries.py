"""What there is, read from the views; light to import, for commands that only list."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text

from pgdefect.db.connection.engine import Database


@dataclass(frozen=True)
class CategorySummary:
    """One row of ``defect.categories``."""

    name: str
    images: int
    train_images: int
    normal_images: int
    anomalous_images: int
    inspected_images: int
    rejected_images: int
    detector_id: int | None
    detector_version: int | None
    threshold: float | None
    retired_at: datetime | None


def list_categories(database: Database) -> list[CategorySummary]:
    """Every category with its counts and active detector, by name."""
    with database.connect() as connection:
        rows = connection.execute(
            text(
                "SELECT category, images, train_images, normal_images, anomalous_images, "
                "inspected_images, rejected_images, detector_id, detector_version, threshold, "
                "retired_at FROM defect.categories ORDER BY category"
            )
        )
        return [CategorySummary(*row) for row in rows]


@dataclass(frozen=True)
class DetectorSummary:
    """One row of ``defect.detectors``; a network has no vectors."""

    id: int
    category: str
    kind: str
    version: int
    state: str
    active: bool
    backbone: str
    num_images: int
    num_vectors: int | None
    threshold: float
    size: str
    created_at: datetime


def list_detectors(database: Database, category: str | None = None) -> list[DetectorSummary]:
    """Detectors of all kinds, newest first within their category."""
    with database.connect() as connection:
        if category is not None:
            from pgdefect.db.records.catalog import category_id

            category_id(connection, category)
        rows = connection.execute(
            text(
                "SELECT detector_id, category, kind, version, state, active, backbone, "
                "num_images, num_vectors, threshold, size, created_at FROM defect.detectors "
                "WHERE CAST(:category AS text) IS NULL OR category = :category "
                "ORDER BY category, detector_id DESC"
            ).bindparams(category=category)
        )
        return [DetectorSummary(*row) for row in rows]
