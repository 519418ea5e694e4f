"""Category `cells`, a tiny bank of real photographs: how it is trained, and what is looked at."""

from __future__ import annotations

from typing import Any

import numpy as np
from sqlalchemy import text

from pgdefect.core.types import Detector
from pgdefect.db.connection.engine import Database
from pgdefect.db.records.summaries import list_detectors
from pgdefect.usecases.train.options import TrainOptions

SIZE = (128, 128)
TINY = TrainOptions(image_size=SIZE, coreset_ratio=0.03, pca_dim=16, num_neighbors=3)


def bank_rows(database: Database, detector: Detector) -> tuple[np.ndarray, np.ndarray]:
    """Vectors by position, and the image each came from."""
    with database.connect() as connection:
        rows = connection.execute(
            text(
                "SELECT embedding::real[], image_id FROM pgdefect.memory_bank_patch "
                "WHERE bank_id = :id ORDER BY position"
            ),
            {"id": detector.bank.id},
        ).all()
    return np.array([r[0] for r in rows], dtype=np.float32), np.array([r[1] for r in rows])


def count(database: Database, table: str) -> int:
    with database.connect() as connection:
        return int(connection.scalar(text(f"SELECT count(*) FROM {table}")) or 0)


def state(database: Database) -> tuple[Any, ...]:
    """What a training that fails must leave as it was."""
    with database.connect() as connection:
        tables = connection.scalars(
            text("SELECT relname FROM pg_class WHERE relname ~ '^memory_bank_patch' ORDER BY 1")
        ).all()
        extractors = connection.scalars(text("SELECT id FROM pgdefect.extractor")).all()
    return list_detectors(database), tables, extractors, count(database, "pgdefect.image")
