"""Normal training images that score far outside the rest: what is stored of them."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

from sqlalchemy import Connection

from pgdefect.db.connection.engine import Database, driver


@dataclass(frozen=True)
class Outlier:
    """A normal training image that scored far outside the rest, and that nobody has reviewed.

    Attributes:
        in_bank: the detector's memory bank holds vectors of it.
    """

    image_id: int
    path: str
    raw_score: float
    in_bank: bool


@dataclass(frozen=True)
class Outliers:
    """The unreviewed outliers of a detector, the highest score first.

    threshold is the one in force; threshold_with_outliers what its rule would have made it with
    them, None where it was not chosen from these scores.
    """

    images: tuple[Outlier, ...]
    threshold: float
    threshold_with_outliers: float | None


def outliers_of(connection: Connection, detector_id: int) -> Outliers:
    """The unreviewed outliers of a detector; none of one that is not there."""
    raw = driver(connection)
    rows = raw.execute(
        "SELECT image_id, path, raw_score, in_bank FROM defect.outliers "
        "WHERE detector_id = %s ORDER BY raw_score DESC, image_id",
        [detector_id],
    ).fetchall()
    detector = raw.execute(
        "SELECT threshold, (threshold_rule->>'threshold_with_outliers')::double precision "
        "FROM pgdefect.detector WHERE id = %s",
        [detector_id],
    ).fetchone()
    threshold, with_outliers = detector or (float("nan"), None)
    return Outliers(tuple(Outlier(*row) for row in rows), threshold, with_outliers)


def outlier_thresholds(database: Database, categories: Set[str]) -> list[tuple[str, Outliers]]:
    """The unreviewed outliers of active detectors of some categories, by category."""
    with database.connect() as connection:
        rows = driver(connection).execute(
            "SELECT DISTINCT category, detector_id FROM defect.outliers "
            "WHERE active AND category = ANY(%s) ORDER BY category, detector_id",
            [sorted(categories)],
        )
        return [(name, outliers_of(connection, number)) for name, number in rows.fetchall()]


def stored_outliers(connection: Connection, category_id: int, kind: str) -> set[int]:
    """Unreviewed outliers of a category's active detector of a kind: ids of images."""
    rows = driver(connection).execute(
        "SELECT o.image_id FROM defect.outliers o JOIN pgdefect.detector d "
        "ON d.id = o.detector_id WHERE d.category_id = %s AND d.kind = %s AND d.active",
        [category_id, kind],
    )
    return {row[0] for row in rows}


def reviewed_as_normal(connection: Connection, image_ids: Sequence[int]) -> set[int]:
    """Which of the images a person has called normal: no statistics speak against that."""
    rows = driver(connection).execute(
        "SELECT id FROM pgdefect.image WHERE id = ANY(%s) AND reviewed_label = 'normal'",
        [list(image_ids)],
    )
    return {row[0] for row in rows}
