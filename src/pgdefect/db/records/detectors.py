"""Detectors of any kind: adding one, finding the active one, its figures.

What a kind needs beside its row is stored elsewhere: `pgdefect.db.records.patchcore` for PatchCore,
`pgdefect.db.records.efficient_ad` for EfficientAD.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from sqlalchemy import Connection, bindparam, func, select, text, true, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session, undefer

from pgdefect.core import errors
from pgdefect.core.detector_kinds import DEFAULT_KIND, kind_named, preference
from pgdefect.core.distance import Precision, metric_named
from pgdefect.core.types import (
    BankInfo,
    Detector,
    DetectorKind,
    EmbeddingTransform,
    Float32,
    Threshold,
)
from pgdefect.core.wording import blank, command
from pgdefect.db.connection.engine import Database
from pgdefect.db.connection.row_locks import keep_category, lock_category
from pgdefect.db.schema.models import Category, DetectorRow, MemoryBankRow


def reserve_detector(connection: Connection, category_id: int) -> int:
    """The id of a detector to be, whose category is not deleted until the transaction ends.

    What belongs to it is made under this id first, which may take minutes, and `add_detector`
    comes last: until then it blocks no inspection, ingestion or change of the category.
    """
    connection.execute(text("SET LOCAL lock_timeout = '30s'"))
    keep_category(connection, category_id)
    return int(
        connection.execute(
            text("SELECT nextval(pg_get_serial_sequence('pgdefect.detector', 'id'))")
        ).scalar_one()
    )


def add_detector(
    connection: Connection,
    detector_id: int,
    *,
    category_id: int,
    extractor_id: int,
    kind: DetectorKind,
    threshold: Threshold,
    settings: Mapping[str, Any],
    metrics: Mapping[str, Any],
    library_versions: Mapping[str, str],
) -> None:
    """Insert a detector as its category's next version and active one of its kind.

    The category's row stays locked for the rest of the transaction.

    Raises:
        UsageError: where there is no such kind.
    """
    kind_named(kind)
    lock_category(connection, category_id)
    same = (DetectorRow.category_id == category_id, DetectorRow.kind == kind)
    newest = connection.scalar(select(func.max(DetectorRow.version)).where(*same))
    connection.execute(update(DetectorRow).where(*same, DetectorRow.active).values(active=False))
    connection.execute(
        _INSERT,
        {
            "id": detector_id,
            "category_id": category_id,
            "extractor_id": extractor_id,
            "kind": kind,
            "version": 1 + (newest or 0),
            "threshold": threshold.value,
            "threshold_rule": dict(threshold.rule),
            "score_center": threshold.center,
            "settings": dict(settings),
            "metrics": dict(metrics),
            "library_versions": dict(library_versions),
        },
    )


# SQLAlchemy cannot say OVERRIDING SYSTEM VALUE, which the id of the sequence needs.
_INSERT = text("""
    INSERT INTO pgdefect.detector
        (id, category_id, extractor_id, kind, version, state, active, threshold, threshold_rule,
         score_center, settings, metrics, library_versions)
    OVERRIDING SYSTEM VALUE VALUES
        (:id, :category_id, :extractor_id, :kind, :version, 'ready', true, :threshold,
         :threshold_rule, :score_center, :settings, :metrics, :library_versions)""").bindparams(
    *(
        bindparam(name, type_=JSONB)
        for name in ("threshold_rule", "settings", "metrics", "library_versions")
    )
)


def active_version(
    database: Database, category: str, kind: DetectorKind | None = None
) -> tuple[int, float, float] | None:
    """What changes when another detector, or another threshold, comes into force.

    Args:
        category: A category's name.
        kind: As for `active_detector`.

    Returns:
        Id, threshold and score center of the active detector; None where there is none.
    """
    with database.connect() as connection:
        row = connection.execute(
            text(
                "SELECT d.id, d.threshold, d.score_center FROM pgdefect.detector d "
                "JOIN pgdefect.category c ON c.id = d.category_id "
                "WHERE c.name = :category AND d.active "
                "AND (CAST(:kind AS text) IS NULL OR d.kind = :kind) "
                "ORDER BY pgdefect.kind_preference(d.kind) LIMIT 1"
            ),
            {"category": category, "kind": kind},
        ).first()
    return None if row is None else (row.id, row.threshold, row.score_center)


def active_detector(
    database: Database, category: str, kind: DetectorKind | None = None
) -> Detector:
    """The category's active detector of a kind; without one, of the kind most preferred.

    Raises:
        UnknownCategory: no such category; the message lists those there are.
        NoActiveDetector: it has not been trained, or was retired.
        UsageError: it is of a kind that this version does not know.
    """
    with database.session() as session:
        found = session.scalar(select(Category).where(Category.name == category))
        if found is None:
            known = session.scalars(select(Category.name).order_by(Category.name)).all()
            raise unknown_category(category, known)
        active = session.scalars(
            select(DetectorRow).where(
                DetectorRow.category_id == found.id,
                DetectorRow.active,
                DetectorRow.kind == kind if kind else true(),
            )
        )
        row = min(active, key=lambda one: preference(one.kind), default=None)
        if row is None:
            of_kind = f" of the kind {kind}" if kind else ""
            which = {"kind": kind} if kind not in (None, DEFAULT_KIND) else {}
            newest = session.scalar(
                select(func.max(DetectorRow.id)).where(
                    DetectorRow.category_id == found.id,
                    DetectorRow.kind == kind if kind else true(),
                )
            )
            instead = f", or take an older one with: {command('activate', detector=newest)}"
            raise errors.NoActiveDetector(
                f"category {category!r} has no active detector{of_kind}. Train one with: "
                f"{command('train', category, **which)}{instead if newest else ''}"
            )
        return Detector(
            id=row.id,
            category_id=found.id,
            category=found.name,
            extractor_id=row.extractor_id,
            kind=row.kind,
            version=row.version,
            active=row.active,
            threshold=row.threshold,
            score_center=row.score_center,
            bank_info=_bank_info(session, row.id) if kind_named(row.kind).has_bank else None,
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
        f"no category {name!r}; {listing}. Add one with: "
        f"{command('ingest', blank('PATH'), category=blank('NAME'))}"
    )


def _bank_info(session: Session, bank_id: int) -> BankInfo:
    row = session.get_one(
        MemoryBankRow,
        bank_id,
        options=[
            undefer(MemoryBankRow.transform_mean),
            undefer(MemoryBankRow.transform_components),
        ],
    )

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
        worst_share=row.worst_share,
        patch_score_std=row.patch_score_std,
    )
