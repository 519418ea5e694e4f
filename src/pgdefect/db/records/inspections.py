"""Storing what detectors said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, func, text, update
from sqlalchemy.dialects.postgresql import insert

from pgdefect.core.types import Inspection, Vote
from pgdefect.db.connection.row_locks import keep_detector, lock_images
from pgdefect.db.schema.models import Inspection as InspectionRow


def store_votes(connection: Connection, detector_id: int, votes: Mapping[int, Vote | None]) -> None:
    """Record with each inspection what its image's defect probably is; None takes it back.

    Raises Conflict if the detector, whose inspections they are, was deleted.
    """
    keep_detector(connection, detector_id)
    images = connection.scalars(
        text("SELECT image_id FROM pgdefect.inspection WHERE id = ANY(:ids)"), {"ids": list(votes)}
    )
    lock_images(connection, images)
    for inspection_id, vote in sorted(votes.items()):
        connection.execute(
            update(InspectionRow)
            .where(InspectionRow.id == inspection_id)
            .values(
                vote=vote
                and {
                    "k": vote.k,
                    "counts": dict(vote.counts),
                    "support": vote.support,
                    "needed": vote.needed,
                    "distance": vote.distance,
                    "limit": vote.limit,
                    "unlike": vote.is_unlike,
                },
                probable_defect_type=vote and vote.defect_type,
            )
        )


def store_inspections(connection: Connection, inspections: Sequence[Inspection]) -> list[int]:
    """Store judgements of recorded images; returns their ids, in order.

    An inspection is a fact of one image, detector and threshold: judging again renews it.
    """
    ids: dict[int, int] = {}
    # `defect.rejudge`, which locks no images, stores them in the same order.
    for inspection in sorted(inspections, key=lambda inspection: inspection.image_id or 0):
        assert inspection.image_id is not None
        if inspection.image_id in ids:
            continue
        positions = inspection.scores.positions
        values = {
            "raw_score": inspection.raw_score,
            "normalized_score": inspection.normalized_score,
            "worst_row": inspection.scores.worst_row,
            "worst_col": inspection.scores.worst_col,
            "anomaly_map": inspection.scores.distances.tolist(),
            "nearest_positions": None if positions is None else positions.tolist(),
            "search": inspection.search,
        }
        statement = insert(InspectionRow).values(
            image_id=inspection.image_id,
            detector_id=inspection.detector_id,
            threshold=inspection.threshold,
            **values,
        )
        ids[inspection.image_id] = connection.execute(
            statement.on_conflict_do_update(
                constraint="uq_inspection_detector_id_image_id_threshold",
                set_={**values, "created_at": func.now()},
            ).returning(InspectionRow.id)
        ).scalar_one()
    return [ids[inspection.image_id] for inspection in inspections if inspection.image_id]
