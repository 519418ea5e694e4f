"""Rows for tests of the database alone: images, extractors and banks of random vectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from sqlalchemy import text

from pgdefect.db import catalog
from pgdefect.db.banks import Calibration, store_detector
from pgdefect.db.engine import Database
from pgdefect.db.extractors import store_extractor, store_image_embeddings
from pgdefect.distance import COSINE, Metric, Precision, as_stored
from pgdefect.types import (
    EmbeddingTransform,
    ExtractorArtifact,
    ExtractorSpec,
    Float32,
    MemoryBank,
    Threshold,
)
from pgdefect.vision.scoring import nearest_vectors


def unit_vectors(seed: int, count: int, dim: int) -> Float32:
    values = np.random.default_rng(seed).standard_normal((count, dim))
    return np.asarray(values / np.linalg.norm(values, axis=1, keepdims=True), dtype=np.float32)


def add_images(database: Database, category: str, count: int, **fields: Any) -> list[int]:
    """Images that lie on no disk; a field is a value, or a function of the image's number."""
    with database.begin() as connection:
        category_id = catalog.ensure_category(connection, category)
        root_id = catalog.ensure_root(connection, f"/nowhere/{category}")
        values = [
            {"path": f"{n:05}.png", "sha256": _digest(category, n), "num_bytes": 1}
            | {"height": 64, "width": 64, "split": "train", "label": "normal"}
            | {key: value(n) if callable(value) else value for key, value in fields.items()}
            for n in range(count)
        ]
        images = [catalog.NewImage(**value) for value in values]
        return catalog.add_images(connection, category_id, root_id, images)


def add_extractor(database: Database, dim: int, name: str = "none") -> int:
    spec = ExtractorSpec(name, ("layer",), {"image_size": [64, 64]}, "nowhere", "0" * 64)
    return store_extractor(database, ExtractorArtifact(spec, dim, 4, 4, b"no graph"))


def add_embeddings(
    database: Database, extractor_id: int, image_ids: Sequence[int], embeddings: Float32
) -> None:
    with database.begin() as connection:
        store_image_embeddings(connection, extractor_id, image_ids, embeddings)
    with database.autocommit() as connection:
        connection.execute("ANALYZE pgdefect.image, pgdefect.image_embedding")


def memory_bank(
    vectors: Float32,
    image_ids: Sequence[int],
    *,
    metric: Metric = COSINE,
    precision: Precision = "half",
    num_neighbors: int = 1,
) -> MemoryBank:
    """A bank of vectors as they are, taken from the images in turn, row by row of 4 cells."""
    n = np.arange(len(vectors))
    return MemoryBank(
        embeddings=as_stored(vectors, precision),
        image_ids=np.asarray(image_ids, dtype=np.int64)[n % len(image_ids)],
        rows=(n // 4 % 4).astype(np.int16),
        cols=(n % 4).astype(np.int16),
        num_images=len(image_ids),
        transform=EmbeddingTransform("none" if metric is not COSINE else "unit"),
        metric=metric,
        precision=precision,
        coreset_ratio=0.1,
        covering_radius=0.5,
        num_neighbors=num_neighbors,
    )


def store(
    database: Database,
    category: str,
    extractor_id: int,
    bank: MemoryBank,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
    holdout_scores: Mapping[int, float] | None = None,
) -> int:
    """Store a bank as a detector of the category; returns its id."""
    with database.connect() as connection:
        category_id = catalog.category_id(connection, category)
    rng = np.random.default_rng(9)
    near = bank.embeddings[rng.integers(len(bank.embeddings), size=64)]
    queries = near + 0.2 * rng.standard_normal(near.shape).astype(np.float32)
    queries = as_stored(
        queries / np.linalg.norm(queries, axis=1, keepdims=True), bank.precision
    ).astype(np.float32)
    _, distances = nearest_vectors(queries, bank.embeddings, bank.metric)
    return store_detector(
        database,
        category_id=category_id,
        extractor_id=extractor_id,
        bank=bank,
        threshold=Threshold(0.5, 0.1, {"rule": "none"}),
        holdout_scores=holdout_scores or {},
        calibration=Calibration(queries, distances),
        settings={},
        metrics={},
        library_versions={},
        progress=progress,
    )


def count(database: Database, table: str, where: str = "true") -> int:
    with database.connect() as connection:
        found = connection.scalar(text(f"SELECT count(*) FROM {table} WHERE {where}"))
    assert isinstance(found, int)
    return found


def bank_tables(database: Database) -> list[str]:
    """Tables that hold or held a bank's vectors, attached or not."""
    with database.connect() as connection:
        rows = connection.scalars(
            text(
                "SELECT relname FROM pg_class WHERE relkind = 'r' "
                r"AND relname LIKE 'memory\_bank\_patch\__%' ORDER BY relname"
            )
        )
        return list(rows)


def _digest(category: str, n: int) -> str:
    import hashlib

    return hashlib.sha256(f"{category} {n}".encode()).hexdigest()
