"""Storing what detectors said: events, each added once and never renewed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, select, text, update
from sqlalchemy.dialects.postgresql import insert

from pgdefect.core.types import Inspection, Vote
from pgdefect.db.connection.row_locks import keep_detector, lock_images
from pgdefect.db.schema.models import InspectionRow

NEWEST = "inspected_at DESC, created_at DESC, id DESC"
"""The order in which inspections count: the first one's verdict is in force."""


def store_votes(connection: Connection, detector_id: int, votes: Mapping[int, Vote | None]) -> None:
    """Record with each inspection what its image's defect probably is; None removes the guess.

    Raises:
        Conflict: if the detector, whose inspections they are, was deleted.
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


def store_inspections(
    connection: Connection,
    inspections: Sequence[Inspection],
    event_key: str | None = None,
    station: str | None = None,
) -> list[int]:
    """Add judgements of recorded images as events; returns their ids, in order.

    Args:
        connection: in a transaction that has the images locked.
        inspections: with an `image_id` each.
        event_key: whose request they answer; an image that has an event under this key keeps
            it, and its id is returned.
        station: where they were made; the login where it is None.
    """
    ids: dict[int, int] = {}
    # `defect.rejudge`, which locks no images, stores them in the same order.
    for inspection in sorted(inspections, key=lambda inspection: inspection.image_id or 0):
        assert inspection.image_id is not None
        if inspection.image_id in ids:
            continue
        positions = inspection.scores.positions
        statement = insert(InspectionRow).values(
            image_id=inspection.image_id,
            detector_id=inspection.detector_id,
            threshold=inspection.threshold,
            raw_score=inspection.raw_score,
            normalized_score=inspection.normalized_score,
            worst_row=inspection.scores.worst_row,
            worst_col=inspection.scores.worst_col,
            anomaly_map=inspection.scores.distances.tolist(),
            nearest_positions=None if positions is None else positions.tolist(),
            search=inspection.search,
            **({} if station is None else {"station": station}),
            **({} if event_key is None else {"event_key": event_key}),
        )
        if event_key is not None:
            statement = statement.on_conflict_do_nothing(
                index_elements=["event_key", "image_id"],
                index_where=text("event_key IS NOT NULL"),
            )
        made = connection.execute(statement.returning(InspectionRow.id)).scalar()
        if made is None:
            made = connection.execute(
                select(InspectionRow.id).where(
                    InspectionRow.event_key == event_key,
                    InspectionRow.image_id == inspection.image_id,
                )
            ).scalar_one()
        ids[inspection.image_id] = made
    return [ids[inspection.image_id] for inspection in inspections if inspection.image_id]
