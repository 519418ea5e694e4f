"""Storing what detectors said."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from sqlalchemy import Connection, func, text, update
from sqlalchemy.dialects.postgresql import insert

from pgdefect.db.models import Inspection as InspectionRow
from pgdefect.types import Inspection, Vote


def lock_for_inspection(connection: Connection, image_ids: Iterable[int]) -> None:
    """Keep others from storing what they say of these images until the transaction ends.

    Taken in one order, so that two inspections of the same images wait and do not deadlock.
    """
    connection.execute(
        text("SELECT FROM pgdefect.image WHERE id = ANY(:ids) ORDER BY id FOR NO KEY UPDATE"),
        {"ids": list(image_ids)},
    )


def store_votes(connection: Connection, votes: Mapping[int, Vote | None]) -> None:
    """Record with each inspection what its image's defect probably is; None takes it back."""
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
                },
                probable_defect_type=vote and vote.defect_type,
            )
        )


def store_inspections(connection: Connection, inspections: Sequence[Inspection]) -> list[int]:
    """Store judgements of recorded images; returns their ids, in order.

    An inspection is a fact of one image, detector and threshold: judging again renews it.
    """
    ids: dict[int, int] = {}
    for inspection in inspections:
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
