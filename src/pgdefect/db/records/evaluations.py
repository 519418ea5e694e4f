"""Evaluations: what they are made from, storing them, reading them back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from sqlalchemy import Connection, insert, text

from pgdefect.core.types import Float32
from pgdefect.db.connection.engine import Database, driver
from pgdefect.db.records.detectors import store_metrics
from pgdefect.db.schema.models import Evaluation

HEADLINES = (
    "image_auroc",
    "image_f1_max",
    "average_precision",
    "pixel_auroc",
    "pixel_f1_max",
    "aupro",
)
"""Figures that an evaluation of all test images also leaves with the detector."""


@dataclass(frozen=True)
class StoredScores:
    """What a stored inspection says of an image; distances `(rows, cols)`."""

    image_id: int
    raw_score: float
    worst_row: int
    worst_col: int
    distances: Float32
    search: str


def stored_scores(
    database: Database, detector_id: int, threshold: float, image_ids: Sequence[int]
) -> dict[int, StoredScores]:
    """A detector's newest inspections of these images under this threshold, by image id.

    One whose map is coarse (search "fast") is given only where there is no other.
    """
    with database.connect() as connection:
        rows = driver(connection).execute(
            "SELECT DISTINCT ON (image_id) "
            "image_id, raw_score, worst_row, worst_col, anomaly_map, search "
            "FROM pgdefect.inspection "
            "WHERE detector_id = %s AND threshold = %s AND image_id = ANY(%s) "
            "ORDER BY image_id, search = 'fast', inspected_at DESC, created_at DESC, id DESC",
            [detector_id, threshold, list(image_ids)],
            binary=True,
        )
        return {
            row[0]: StoredScores(
                row[0], row[1], row[2], row[3], np.array(row[4], dtype=np.float32), row[5]
            )
            for row in rows
        }


def images_learned(connection: Connection, detector_id: int) -> tuple[set[int], set[int]]:
    """Ids of the images a detector has learned from, and of others that set its threshold."""
    sides: tuple[set[int], set[int]] = (set(), set())
    for image_id, learned in connection.execute(
        text("SELECT image_id, learned FROM pgdefect.images_learned(:detector)"),
        {"detector": detector_id},
    ):
        sides[not learned].add(image_id)
    return sides


def store_evaluation(
    database: Database,
    detector_id: int,
    *,
    threshold: float,
    split: str,
    normal_images: int,
    anomalous_images: int,
    metrics: Mapping[str, Any],
    settings: Mapping[str, Any],
    headline: bool,
) -> int:
    """Store an evaluation; returns its id.

    Args:
        headline: its main figures become the detector's own, for ``defect.banks`` to show, and
            with them how many of its images leak.
    """
    with database.begin() as connection:
        evaluation_id: int = connection.execute(
            insert(Evaluation)
            .values(
                detector_id=detector_id,
                threshold=threshold,
                split=split,
                normal_images=normal_images,
                anomalous_images=anomalous_images,
                metrics=dict(metrics),
                settings=dict(settings),
            )
            .returning(Evaluation.id)
        ).scalar_one()
    if headline:
        store_metrics(
            database,
            detector_id,
            {
                "evaluation_id": evaluation_id,
                **{name: metrics[name] for name in (*HEADLINES, "leaking_images")},
            },
        )
    return evaluation_id


@dataclass(frozen=True)
class EvaluationSummary:
    """One row of ``defect.evaluations``."""

    id: int
    category: str
    detector_id: int
    version: int
    split: str
    threshold: float
    normal_images: int
    anomalous_images: int
    metrics: Mapping[str, Any]
    settings: Mapping[str, Any]
    created_at: datetime


def latest_evaluations(
    database: Database, category: str | None = None, *, split: str = "test"
) -> list[EvaluationSummary]:
    """The newest evaluation of each detector on a split; newest detector first by category."""
    with database.connect() as connection:
        rows = connection.execute(
            text(
                "SELECT DISTINCT ON (category, detector_id) evaluation_id, category, "
                "detector_id, version, split, threshold, normal_images, anomalous_images, "
                "metrics, settings, created_at FROM defect.evaluations "
                "WHERE split = :split "
                "AND (CAST(:category AS text) IS NULL OR category = :category) "
                "ORDER BY category, detector_id DESC, evaluation_id DESC"
            ).bindparams(category=category, split=split)
        )
        return [EvaluationSummary(*row) for row in rows]
