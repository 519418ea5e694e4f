"""Thresholds and their history; the scores they are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from psycopg.types.json import Jsonb
from sqlalchemy import Connection, insert

from pgdefect.core.arrays import Float64
from pgdefect.core.types import Threshold
from pgdefect.db.connection.engine import driver
from pgdefect.db.schema.models import DetectorThreshold, HoldoutScore


@dataclass(frozen=True)
class ThresholdRecord:
    """One row of ``defect.thresholds``; until is None for the one in force."""

    threshold: float
    score_center: float
    rule: dict[str, Any]
    set_by: str
    since: datetime
    until: datetime | None


@dataclass(frozen=True)
class LabeledScores:
    """Raw scores `(n,)` of images of known label that the detector has not learned from."""

    normal: Float64
    anomalous: Float64


def store_first_threshold(
    connection: Connection,
    detector_id: int,
    threshold: Threshold,
    holdout_scores: Mapping[int, float],
) -> None:
    """Begin a new detector's history, and keep the scores by image id it was made from.

    The outliers among them are those that the threshold's rule names.
    """
    outliers = set(threshold.rule.get("outliers", ()))
    connection.execute(
        insert(DetectorThreshold).values(
            detector_id=detector_id,
            threshold=threshold.value,
            score_center=threshold.center,
            rule=dict(threshold.rule),
        )
    )
    if holdout_scores:
        connection.execute(
            insert(HoldoutScore),
            [
                {
                    "detector_id": detector_id,
                    "image_id": image_id,
                    "raw_score": score,
                    "outlier": image_id in outliers,
                }
                for image_id, score in sorted(holdout_scores.items())
            ],
        )


def find_detector(connection: Connection, category: str, detector_id: int | None = None) -> int:
    """The category's active detector (PatchCore's where one of each kind is), or the one named.

    Raises:
        NotFound: where there is none, or it is another category's.
    """
    row = (
        driver(connection)
        .execute("SELECT pgdefect.find_detector(%s, %s)", [category, detector_id])
        .fetchone()
    )
    assert row is not None
    return int(row[0])


@dataclass(frozen=True)
class HoldoutScores:
    """Raw scores by image id of the normal training images held out.

    Attributes:
        left_out: those of them that no threshold is chosen from, because they score far outside
            the rest and no review says that they are normal, or because a review says that they
            are not.
        parts: what each shows, its group, or the image and its copies.
    """

    scores: Mapping[int, float]
    left_out: frozenset[int]
    parts: Mapping[int, str]

    @property
    def counted(self) -> Float64:
        """The scores `(n,)` that thresholds are chosen from."""
        rest = [score for image_id, score in self.scores.items() if image_id not in self.left_out]
        return np.array(rest, dtype=np.float64)


def holdout_scores(connection: Connection, detector_id: int) -> HoldoutScores:
    """The scores of the normal training images held out; maybe none."""
    rows = (
        driver(connection)
        .execute(
            "SELECT h.image_id, h.raw_score, h.left_out, "
            "       coalesce('g' || i.group_name, 's' || i.sha256) "
            "FROM pgdefect.holdout_scores(%s) h JOIN pgdefect.image i ON i.id = h.image_id "
            "ORDER BY h.image_id",
            [detector_id],
        )
        .fetchall()
    )
    return HoldoutScores(
        {image_id: score for image_id, score, _, _ in rows},
        frozenset(image_id for image_id, _, left_out, _ in rows if left_out),
        {image_id: part for image_id, _, _, part in rows},
    )


def production_scores(
    connection: Connection, detector_id: int, anomalous_share: float | None
) -> tuple[Float64, list[str]]:
    """Raw scores `(n,)` of production images that are normal, and the part that each shows.

    Args:
        anomalous_share: presumes that images nobody has judged are normal but for this share.
    """
    rows = (
        driver(connection)
        .execute(
            "SELECT p.raw_score, coalesce('g' || i.group_name, 's' || i.sha256) "
            "FROM pgdefect.production_scores(%s, %s) p JOIN pgdefect.image i ON i.id = p.image_id "
            "ORDER BY p.image_id",
            [detector_id, anomalous_share],
        )
        .fetchall()
    )
    return np.array([row[0] for row in rows], dtype=np.float64), [row[1] for row in rows]


def labeled_scores(connection: Connection, detector_id: int, split: str) -> LabeledScores:
    """The newest raw score of each labeled image of a split, whatever its threshold was."""
    rows = (
        driver(connection)
        .execute(
            "SELECT label, raw_score FROM pgdefect.labeled_scores(%s, %s)", [detector_id, split]
        )
        .fetchall()
    )
    return LabeledScores(
        np.array([score for label, score in rows if label == "normal"], dtype=np.float64),
        np.array([score for label, score in rows if label == "anomalous"], dtype=np.float64),
    )


def set_threshold(
    connection: Connection,
    category: str,
    threshold: float,
    rule: Mapping[str, Any],
    detector_id: int | None = None,
) -> float:
    """Put a threshold in force and into the history; returns the one before."""
    row = (
        driver(connection)
        .execute(
            "SELECT threshold_before FROM defect.set_threshold(%s, %s, %s, %s)",
            [category, threshold, Jsonb(dict(rule)), detector_id],
        )
        .fetchone()
    )
    assert row is not None
    return float(row[0])


def score_center(connection: Connection, detector_id: int, threshold: float) -> float:
    """Where the detector's normalized score would be 0.25 under a threshold."""
    row = (
        driver(connection)
        .execute("SELECT pgdefect.score_center(%s, %s)", [detector_id, threshold])
        .fetchone()
    )
    assert row is not None
    return float(row[0])


def rejudge(connection: Connection, detector_id: int) -> int:
    """Apply the present threshold to stored scores as new inspections.

    Returns how many photographs got one; simulated defects follow uncounted.
    """
    row = driver(connection).execute("SELECT defect.rejudge(%s)", [detector_id]).fetchone()
    assert row is not None
    return int(row[0])


def stale_inspections(connection: Connection, detector_id: int) -> int:
    """How many photographs the detector has judged, but not under its present threshold."""
    row = (
        driver(connection)
        .execute(
            "SELECT count(*) FROM (SELECT DISTINCT ON (s.image_id) s.threshold "
            "FROM pgdefect.inspection s JOIN pgdefect.image i ON i.id = s.image_id "
            "WHERE s.detector_id = %s AND i.retired_at IS NULL AND i.split <> 'simulated' "
            "ORDER BY s.image_id, s.inspected_at DESC, s.created_at DESC, s.id DESC) newest, "
            "pgdefect.detector d "
            "WHERE d.id = %s AND newest.threshold <> d.threshold",
            [detector_id, detector_id],
        )
        .fetchone()
    )
    assert row is not None
    return int(row[0])


def threshold_history(connection: Connection, detector_id: int) -> list[ThresholdRecord]:
    """Every threshold of a detector, the one in force first."""
    rows = driver(connection).execute(
        "SELECT threshold, score_center, rule, set_by, since, until FROM defect.thresholds "
        "WHERE detector_id = %s ORDER BY threshold_id DESC",
        [detector_id],
    )
    return [ThresholdRecord(*row) for row in rows.fetchall()]
