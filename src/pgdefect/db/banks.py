"""Detectors and their memory banks: stored whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
from psycopg import sql
from sqlalchemy import Connection, exc, func, insert, select, text, update
from sqlalchemy.orm import undefer

from pgdefect import errors
from pgdefect.db.copy import copy_rows
from pgdefect.db.engine import Database, VectorArray, driver
from pgdefect.db.models import Category
from pgdefect.db.models import Detector as DetectorRow
from pgdefect.db.models import MemoryBank as MemoryBankRow
from pgdefect.distance import Precision, index_expression, indexed_type, metric_named
from pgdefect.types import (
    UNKNOWN_IMAGE,
    BankInfo,
    Detector,
    EmbeddingTransform,
    Float32,
    MemoryBank,
    Threshold,
)

EF_SEARCH_CHOICES = (10, 20, 30, 40, 60, 80, 120, 160, 320, 640, 1000)
RECALL_TARGET = 0.993
"""Of held-out normal patches; a little over the 0.99 meant for new images, which are harder."""
FAST_RECALL_TARGET = 0.95
MIN_GAIN = 0.0005
PARALLEL_WORKERS = 8
"""Asked for; max_parallel_maintenance_workers decides."""
PARALLEL_VECTORS = 5_000
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Calibration:
    """Queries to choose ef_search by, and their exact nearest distances.

    queries: `(n, embedding_dim)` transformed and rounded as stored; distances: `(n,)`.
    """

    queries: Float32
    distances: Float32


class _Chosen(NamedTuple):
    ef_search: int
    recall: float
    ef_search_fast: int


def store_detector(
    database: Database,
    *,
    category_id: int,
    extractor_id: int,
    bank: MemoryBank,
    threshold: Threshold,
    calibration: Calibration,
    settings: Mapping[str, Any],
    metrics: Mapping[str, Any],
    library_versions: Mapping[str, str],
    progress: Progress = lambda stage, done, total: None,
) -> int:
    """Store a trained detector and make it the category's active one; returns its id.

    One transaction: rows by binary COPY into a table of their own, primary key, HNSW index,
    statistics, the choice of ef_search, and at the end the attachment to the parent. Until
    it commits nobody sees any of it, and if it does not, nothing remains.
    """
    with database.begin() as connection:
        connection.execute(text("SET LOCAL lock_timeout = '30s'"))
        # Nobody may train, delete or retire this category in between.
        connection.execute(select(Category.id).where(Category.id == category_id).with_for_update())
        version = 1 + (
            connection.scalar(
                select(func.max(DetectorRow.version)).where(DetectorRow.category_id == category_id)
            )
            or 0
        )
        connection.execute(
            update(DetectorRow)
            .where(DetectorRow.category_id == category_id, DetectorRow.active)
            .values(active=False)
        )
        detector_id = connection.execute(
            insert(DetectorRow)
            .values(
                category_id=category_id,
                extractor_id=extractor_id,
                kind="patchcore",
                version=version,
                state="ready",
                active=True,
                threshold=threshold.value,
                threshold_rule=dict(threshold.rule),
                score_center=threshold.center,
                settings=dict(settings),
                metrics=dict(metrics),
                library_versions=dict(library_versions),
            )
            .returning(DetectorRow.id)
        ).scalar_one()
        _check_provenance(connection, bank)
        _load(connection, detector_id, bank, progress)
        _index(connection, detector_id, bank, progress)
        chosen = _calibrate(connection, detector_id, bank, calibration)
        _insert_bank(connection, detector_id, bank, chosen)
        table = partition_name(detector_id)
        connection.execute(
            text(
                f"ALTER TABLE pgdefect.memory_bank_patch ATTACH PARTITION pgdefect.{table} "
                f"FOR VALUES IN ({detector_id})"
            )
        )
    return detector_id


def partition_name(bank_id: int) -> str:
    """The table that holds one bank's vectors."""
    return f"memory_bank_patch_{int(bank_id)}"


def _check_provenance(connection: Connection, bank: MemoryBank) -> None:
    ids = np.unique(bank.image_ids[bank.image_ids != UNKNOWN_IMAGE]).tolist()
    # The lock keeps the images until the bank can be seen, and with it what forbids deletion.
    found = connection.execute(
        text("SELECT id FROM pgdefect.image WHERE id = ANY(:ids) ORDER BY id FOR KEY SHARE"),
        {"ids": ids},
    ).all()
    if len(found) != len(ids):
        raise errors.Conflict(
            f"{len(ids) - len(found)} of the training images were deleted during training; "
            "train again"
        )


def _load(connection: Connection, bank_id: int, bank: MemoryBank, progress: Progress) -> None:
    table = partition_name(bank_id)
    count = len(bank.embeddings)
    connection.execute(text(f"CREATE TABLE pgdefect.{table} (LIKE pgdefect.memory_bank_patch)"))
    copy_rows(
        driver(connection),
        sql.Identifier("pgdefect", table),
        [
            ("bank_id", np.full(count, bank_id, dtype=np.int64)),
            ("position", np.arange(count, dtype=np.int32)),
            ("image_id", bank.image_ids.astype(np.int64)),
            ("row", bank.rows.astype(np.int16)),
            ("col", bank.cols.astype(np.int16)),
            ("embedding", bank.embeddings),
        ],
        progress=lambda done, total: progress("load", done, total),
    )


def _index(connection: Connection, bank_id: int, bank: MemoryBank, progress: Progress) -> None:
    table = partition_name(bank_id)
    dim = bank.embeddings.shape[1]
    kind = indexed_type(bank.precision, dim)
    progress("index", 0, 1)
    connection.execute(
        text(f"""
        ALTER TABLE pgdefect.{table}
            ADD CONSTRAINT pk_{table} PRIMARY KEY (bank_id, position),
            ADD CONSTRAINT ck_{table}_bank CHECK (bank_id = {bank_id}),
            ADD CONSTRAINT ck_{table}_dim CHECK (vector_dims(embedding) = {dim})""")
    )
    create = text(
        f"CREATE INDEX {table}_hnsw ON pgdefect.{table} "
        f"USING hnsw (({index_expression(kind, dim)}) {bank.metric.operator_class(kind)})"
    )
    workers = PARALLEL_WORKERS if len(bank.embeddings) >= PARALLEL_VECTORS else 0
    try:
        # Left to itself the server builds tables of less than 8 MB alone.
        _set_workers(connection, table, workers)
        with connection.begin_nested():
            connection.execute(create)
    except exc.OperationalError:
        # Workers share memory, and a container may have too little of it.
        _set_workers(connection, table, 0)
        connection.execute(create)
    connection.execute(text(f"ALTER TABLE pgdefect.{table} RESET (parallel_workers)"))
    connection.execute(text(f"ANALYZE pgdefect.{table}"))
    progress("index", 1, 1)


def _set_workers(connection: Connection, table: str, workers: int) -> None:
    connection.execute(text(f"ALTER TABLE pgdefect.{table} SET (parallel_workers = {workers})"))


def _calibrate(
    connection: Connection, bank_id: int, bank: MemoryBank, calibration: Calibration
) -> _Chosen:
    """The smallest ef_search whose recall@1 reaches each target or stops growing."""
    dim = bank.embeddings.shape[1]
    kind = indexed_type(bank.precision, dim)
    distance = f"{index_expression(kind, dim)} {bank.metric.operator} q.v"
    statement = f"""
        SELECT p.distance
        FROM (SELECT n, v::{kind}({dim}) AS v FROM unnest(%s) WITH ORDINALITY u(v, n) OFFSET 0) q
        CROSS JOIN LATERAL (
            SELECT ({distance})::double precision AS distance
            FROM pgdefect.{partition_name(bank_id)} ORDER BY {distance} LIMIT 1
        ) p ORDER BY q.n"""
    raw = driver(connection)
    raw.execute("SET LOCAL enable_seqscan = off")
    ef_search, recall = EF_SEARCH_CHOICES[0], 0.0
    fast: int | None = None
    # A tie, or a distance equal to rounding, is as good as the nearest.
    good_enough = calibration.distances * (1 + 1e-4) + 1e-6
    for candidate in EF_SEARCH_CHOICES:
        raw.execute("SELECT set_config('hnsw.ef_search', %s, true)", [str(candidate)])
        rows = raw.execute(statement, [VectorArray(calibration.queries)], binary=True).fetchall()
        reached = float((np.array([row[0] for row in rows]) <= good_enough).mean())
        # Vectors no path of the graph leads to are not found by searching longer.
        if reached - recall < MIN_GAIN and recall > 0.9:
            break
        ef_search, recall = candidate, reached
        if fast is None and recall >= FAST_RECALL_TARGET:
            fast = candidate
        if recall >= RECALL_TARGET:
            break
    raw.execute("SET LOCAL enable_seqscan = on")
    return _Chosen(ef_search, recall, ef_search if fast is None else fast)


def _insert_bank(connection: Connection, bank_id: int, bank: MemoryBank, chosen: _Chosen) -> None:
    transform = bank.transform
    connection.execute(
        insert(MemoryBankRow).values(
            id=bank_id,
            num_images=bank.num_images,
            num_vectors=len(bank.embeddings),
            embedding_dim=bank.embeddings.shape[1],
            precision=bank.precision,
            indexed_type=indexed_type(bank.precision, bank.embeddings.shape[1]),
            metric=bank.metric.name,
            operator=bank.metric.operator,
            transform=transform.kind,
            transform_mean=None if transform.mean is None else transform.mean.tolist(),
            transform_components=(
                None if transform.components is None else transform.components.tolist()
            ),
            transform_constant=transform.constant,
            coreset_ratio=bank.coreset_ratio,
            covering_radius=bank.covering_radius,
            num_neighbors=bank.num_neighbors,
            ef_search=chosen.ef_search,
            ef_search_recall=chosen.recall,
            ef_search_fast=chosen.ef_search_fast,
        )
    )


def active_detector(database: Database, category: str) -> Detector:
    """The category's active detector.

    Raises:
        UnknownCategory: no such category; the message lists those there are.
        NoActiveDetector: it has not been trained, or was retired.
    """
    with database.session() as session:
        found = session.scalar(select(Category).where(Category.name == category))
        if found is None:
            known = session.scalars(select(Category.name).order_by(Category.name)).all()
            raise unknown_category(category, known)
        row = session.scalar(
            select(DetectorRow).where(DetectorRow.category_id == found.id, DetectorRow.active)
        )
        if row is None:
            raise errors.NoActiveDetector(
                f"category {category!r} has no active detector. Train one with: "
                f"pgdefect train {category}"
            )
        bank = session.get_one(
            MemoryBankRow,
            row.id,
            options=[
                undefer(MemoryBankRow.transform_mean),
                undefer(MemoryBankRow.transform_components),
            ],
        )
        return Detector(
            id=row.id,
            category_id=found.id,
            category=found.name,
            extractor_id=row.extractor_id,
            version=row.version,
            active=row.active,
            threshold=row.threshold,
            score_center=row.score_center,
            bank=_bank_info(bank),
        )


def store_metrics(database: Database, detector_id: int, metrics: Mapping[str, Any]) -> None:
    """Add measured figures to a detector's."""
    with database.begin() as connection:
        connection.execute(
            update(DetectorRow)
            .where(DetectorRow.id == detector_id)
            .values(metrics=DetectorRow.metrics.concat(dict(metrics)))
        )


def unknown_category(name: str, known: Any) -> errors.UnknownCategory:
    """The error for a name that is none of `known`."""
    listing = f"known: {', '.join(known)}" if known else "there is none yet"
    return errors.UnknownCategory(
        f"no category {name!r}; {listing}. Add one with: pgdefect ingest PATH --category NAME"
    )


def _bank_info(row: MemoryBankRow) -> BankInfo:
    def array(values: Any) -> Float32 | None:
        return None if values is None else np.asarray(values, dtype=np.float32)

    return BankInfo(
        id=row.id,
        num_vectors=row.num_vectors,
        embedding_dim=row.embedding_dim,
        metric=metric_named(row.metric),
        precision=cast(Precision, row.precision),
        transform=EmbeddingTransform(
            row.transform,  # type: ignore[arg-type]
            array(row.transform_mean),
            array(row.transform_components),
            row.transform_constant,
        ),
        coreset_ratio=row.coreset_ratio,
        num_neighbors=row.num_neighbors,
        ef_search=row.ef_search,
        ef_search_fast=row.ef_search_fast,
    )
