"""Runs of `inspect` that can be resumed, and what was stored under an event key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import Connection, text

from pgdefect.core.types import AnomalousRegion, Defect, PatchScores, StoredImage, Vote
from pgdefect.db.connection.engine import Database, driver
from pgdefect.db.search.queries import stored_images

__all__ = ["StoredInspection", "begin_run", "finish_run", "inspected_under", "unfinished_run"]


@dataclass(frozen=True)
class StoredInspection:
    """An inspection as it is stored; preprocessing is that of its detector's extractor.

    Attributes:
        defect: what is stored of the image now, where this detector made it.
    """

    id: int
    image: StoredImage
    detector_id: int
    threshold: float
    raw_score: float
    normalized_score: float
    scores: PatchScores
    search: str
    preprocessing: Mapping[str, Any]
    vote: Vote | None
    defect: Defect | None


def unfinished_run(database: Database, digest: str) -> str | None:
    """The event key of a run that was stored in part; None where there is none."""
    with database.connect() as connection:
        found = connection.scalar(
            text("SELECT event_key FROM pgdefect.inspection_run WHERE digest = :digest"),
            {"digest": digest},
        )
    return None if found is None else str(found)


def begin_run(connection: Connection, digest: str, detector_id: int, event_key: str) -> str:
    """Record a run with the first that it stores; returns the event key that goes with it.

    Of two equal runs at the same time the later one takes the key of the first. The caller
    keeps the detector from being deleted (`keep_detector`).
    """
    values = {"digest": digest, "detector": detector_id, "key": event_key}
    connection.execute(
        text(
            "INSERT INTO pgdefect.inspection_run (digest, detector_id, event_key) "
            "VALUES (:digest, :detector, :key) ON CONFLICT (digest) DO NOTHING"
        ),
        values,
    )
    found = connection.scalar(
        text("SELECT event_key FROM pgdefect.inspection_run WHERE digest = :digest"), values
    )
    return str(found or event_key)  # an equal run has finished between the two


def finish_run(connection: Connection, digest: str) -> None:
    """Forget a run that is complete: the next one like it makes inspections of its own."""
    connection.execute(
        text("DELETE FROM pgdefect.inspection_run WHERE digest = :digest"), {"digest": digest}
    )


def inspected_under(
    database: Database, category_id: int, event_key: str
) -> dict[str, StoredInspection]:
    """What was stored under an event key of a category's images, by the images' sha256."""
    with database.connect() as connection:
        rows = (
            driver(connection)
            .execute(
                "SELECT s.image_id, s.id, s.detector_id, s.threshold, s.raw_score, "
                "s.normalized_score, s.anomaly_map, s.nearest_positions, s.worst_row, "
                "s.worst_col, s.search, x.preprocessing, s.vote, x.id "
                "FROM pgdefect.inspection s JOIN pgdefect.image i ON i.id = s.image_id "
                "JOIN pgdefect.detector d ON d.id = s.detector_id "
                "JOIN pgdefect.extractor x ON x.id = d.extractor_id "
                "WHERE s.event_key = %s AND i.category_id = %s ORDER BY s.image_id",
                [event_key, category_id],
                binary=True,
            )
            .fetchall()
        )
        images = stored_images(connection, [row[0] for row in rows])
        defects = _defects(connection, {row[0]: (row[13], row[2]) for row in rows})
    found: dict[str, StoredInspection] = {}
    for image_id, id_, detector_id, threshold, raw, normalized, *rest in rows:
        distances, positions, worst_row, worst_col, search, preprocessing, vote, _ = rest
        if image_id not in images:
            continue
        image = images[image_id]
        scores = PatchScores(
            np.array(distances, dtype=np.float32),
            None if positions is None else np.array(positions, dtype=np.int32),
            worst_row,
            worst_col,
            raw,
        )
        found[image.sha256] = StoredInspection(
            *(id_, image, detector_id, threshold, raw, normalized, scores, search, preprocessing),
            vote=_vote(vote),
            defect=defects.get(image_id),
        )
    return found


def _vote(stored: Mapping[str, Any] | None) -> Vote | None:
    if stored is None:
        return None
    counts = sorted(stored["counts"].items(), key=lambda item: -item[1])
    return Vote(
        stored["k"],
        dict(counts),
        stored["needed"],
        stored.get("distance"),
        stored.get("limit"),
    )


def _defects(connection: Connection, made_by: Mapping[int, tuple[int, int]]) -> dict[int, Defect]:
    """Stored defects by image id; made_by: extractor and detector by image id."""
    if not made_by:
        return {}
    keys = [
        list(made_by),
        [extractor for extractor, _ in made_by.values()],
        [detector for _, detector in made_by.values()],
    ]
    wanted = (
        "JOIN unnest(%s::bigint[], %s::bigint[], %s::bigint[]) "
        "w(image_id, extractor_id, detector_id) USING (image_id, extractor_id, detector_id)"
    )
    raw = driver(connection)
    regions: dict[int, list[AnomalousRegion]] = {}
    for image_id, *box, cells, area, peak, mean, embedding in raw.execute(
        "SELECT image_id, x, y, width, height, num_patches, area, peak_score, mean_score, "
        f"embedding::real[] FROM pgdefect.defect_region {wanted} ORDER BY image_id, rank",
        keys,
        binary=True,
    ):
        regions.setdefault(image_id, []).append(
            AnomalousRegion(
                (box[0], box[1], box[2], box[3]),
                *(cells, area, peak, mean),
                np.array(embedding, dtype=np.float32),
            )
        )
    rows = raw.execute(
        f"SELECT image_id, embedding::real[] FROM pgdefect.defect_embedding {wanted}",
        keys,
        binary=True,
    )
    return {
        image_id: Defect(np.array(embedding, dtype=np.float32), tuple(regions.get(image_id, ())))
        for image_id, embedding in rows
    }
