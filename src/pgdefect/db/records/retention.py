"""Deleting inspections that nothing rests on any more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from sqlalchemy import Connection, text

from pgdefect.db.access.roles import require_owner
from pgdefect.db.connection.engine import Database
from pgdefect.db.connection.row_locks import lock_images
from pgdefect.db.records.catalog import category_id

BATCH_IMAGES = 2000

_SUPERSEDED = """
    SELECT s.id, s.image_id, pg_column_size(s.anomaly_map)
                             + coalesce(pg_column_size(s.nearest_positions), 0) AS bytes
    FROM pgdefect.inspection s JOIN pgdefect.image i ON i.id = s.image_id
    WHERE s.created_at < :before AND s.event <> 'inspection'
      AND (CAST(:category AS bigint) IS NULL OR i.category_id = :category)
      AND EXISTS (
          SELECT FROM pgdefect.inspection newer
          WHERE newer.image_id = s.image_id AND newer.detector_id = s.detector_id
            AND (newer.inspected_at, newer.created_at, newer.id)
                > (s.inspected_at, s.created_at, s.id))"""


@dataclass(frozen=True)
class Prunable:
    """What pruning takes, or took, and what it leaves.

    Attributes:
        inspections: superseded ones made before that time, of so many images.
        kept: all others.
        bytes: of the maps that go, as stored.
        runs: interrupted ones begun before it, which can then no longer be resumed.
    """

    before: datetime
    inspections: int
    images: int
    kept: int
    bytes: int
    runs: int


def prunable(database: Database, before: datetime, category: str | None = None) -> Prunable:
    """What `prune_inspections` would delete.

    Of every image stay the first inspection, which counts by day rest on, and each detector's
    newest, which verdicts, thresholds and figures rest on. Raises UnknownCategory.
    """
    with database.connect() as connection:
        which = None if category is None else category_id(connection, category)
        parameters = {"before": before, "category": which}
        row = connection.execute(
            text(
                f"WITH gone AS ({_SUPERSEDED}) "
                "SELECT count(*), count(DISTINCT image_id), coalesce(sum(bytes), 0), "
                "(SELECT count(*) FROM pgdefect.inspection s "
                " JOIN pgdefect.image i ON i.id = s.image_id "
                " WHERE CAST(:category AS bigint) IS NULL OR i.category_id = :category), "
                f"({_RUNS.format('count(*)')}) FROM gone"
            ),
            parameters,
        ).one()
    gone, images, size, every, runs = (int(value) for value in row)
    return Prunable(before, gone, images, every - gone, size, runs)


_RUNS = """
    SELECT {} FROM pgdefect.inspection_run r JOIN pgdefect.detector d ON d.id = r.detector_id
    WHERE r.started_at < :before
      AND (CAST(:category AS bigint) IS NULL OR d.category_id = :category)"""


def prune_inspections(
    database: Database, before: datetime, category: str | None = None
) -> Prunable:
    """Delete superseded inspections made before a time; returns what went (see `prunable`).

    Batch by batch: interrupted, what is deleted stays so, and the same call does the rest.
    Raises UnknownCategory, and NotPermitted for a login that is not the owner.
    """
    require_owner(database, "pruning inspections")
    preview = prunable(database, before, category)
    with database.connect() as connection:
        which = None if category is None else category_id(connection, category)
    parameters = {"before": before, "category": which}
    while database.transact(partial(_prune_batch, parameters=parameters)):
        pass

    def forget_runs(connection: Connection) -> None:
        connection.execute(
            text(
                f"DELETE FROM pgdefect.inspection_run WHERE digest IN ({_RUNS.format('r.digest')})"
            ),
            parameters,
        )

    database.transact(forget_runs)
    return preview


def _prune_batch(connection: Connection, parameters: Mapping[str, object]) -> int:
    """Of some images; images are locked before what hangs on them, as everybody does."""
    images = connection.scalars(
        text(f"SELECT DISTINCT image_id FROM ({_SUPERSEDED}) g ORDER BY 1 LIMIT :images"),
        {**parameters, "images": BATCH_IMAGES},
    ).all()
    lock_images(connection, images)
    connection.execute(
        text(
            f"DELETE FROM pgdefect.inspection WHERE id IN "
            f"(SELECT id FROM ({_SUPERSEDED}) g WHERE image_id = ANY(:images))"
        ),
        {**parameters, "images": list(images)},
    )
    return len(images)
