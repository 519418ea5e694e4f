"""EfficientAD detectors: their networks, stored whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, insert

from pgdefect.core.detector_kinds import EFFICIENT_AD
from pgdefect.core.types import NetworkArtifact, Threshold
from pgdefect.db.connection.engine import Database
from pgdefect.db.connection.row_locks import keep_images
from pgdefect.db.records.detectors import add_detector, reserve_detector
from pgdefect.db.records.extractors import cached_graph
from pgdefect.db.records.thresholds import store_first_threshold
from pgdefect.db.schema.models import DetectorModel


def store_network(
    database: Database,
    *,
    category_id: int,
    extractor_id: int,
    network: NetworkArtifact,
    threshold: Threshold,
    holdout_scores: Mapping[int, float],
    settings: Mapping[str, Any],
    metrics: Mapping[str, Any],
    library_versions: Mapping[str, str],
) -> int:
    """Store a trained network as the category's active EfficientAD detector; returns its id.

    Args:
        holdout_scores: raw score by image id of the normal training images the threshold is from.
    """

    def work(connection: Connection) -> int:
        detector_id = reserve_detector(connection, category_id)
        keep_images(connection, holdout_scores)
        add_detector(
            connection,
            detector_id,
            category_id=category_id,
            extractor_id=extractor_id,
            kind=EFFICIENT_AD,
            threshold=threshold,
            settings=settings,
            metrics=metrics,
            library_versions=library_versions,
        )
        store_first_threshold(connection, detector_id, threshold, holdout_scores)
        connection.execute(
            insert(DetectorModel).values(
                detector_id=detector_id, onnx=network.onnx, onnx_sha256=network.onnx_sha256
            )
        )
        return detector_id

    return database.transact(work)


def load_network(database: Database, detector_id: int, cache_dir: Path) -> NetworkArtifact:
    """A detector's network, from a local cache when it holds the same bytes.

    Raises:
        DatabaseError: the stored graph does not match its checksum.
    """
    with database.session() as session:
        row = session.get_one(DetectorModel, detector_id)
        return NetworkArtifact(
            cached_graph(
                cache_dir / "networks",
                row.onnx_sha256,
                lambda: row.onnx,
                f"detector {detector_id}",
            )
        )
