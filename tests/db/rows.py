"""Rows for tests of the database alone: images, extractors and banks of random vectors."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg import sql
from sqlalchemy import text

from pgdefect.core.distance import COSINE, Metric, Precision, as_stored, nearest_vectors
from pgdefect.core.types import (
    EmbeddingTransform,
    ExtractorArtifact,
    ExtractorSpec,
    Float32,
    MemoryBank,
    Threshold,
)
from pgdefect.db.connection.binary_format import copy_rows
from pgdefect.db.connection.engine import Database, driver
from pgdefect.db.records import catalog
from pgdefect.db.records.extractors import (
    create_extractor_partition,
    store_extractor,
    store_image_embeddings,
)
from pgdefect.db.records.patchcore import Calibration, store_detector


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


def add_defect_space(database: Database, extractor_id: int, dim: int) -> None:
    """Where defect embeddings of `dim` go; how they are made does not matter here."""
    with database.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO pgdefect.defect_space (extractor_id, embedding_dim, parameters, "
                "settings) VALUES (:extractor, :dim, '', '{}')"
            ),
            {"extractor": extractor_id, "dim": dim},
        )
        for parent, key in (("defect_embedding", "image_id"), ("defect_region", "id")):
            create_extractor_partition(
                connection, parent, extractor_id, dim, f"extractor_id, {key}"
            )


def add_defect_embeddings(
    database: Database,
    extractor_id: int,
    detector_id: int,
    image_ids: Sequence[int] | NDArray[np.int64],
    embeddings: Float32,
) -> None:
    with database.begin() as connection:
        copy_rows(
            driver(connection),
            sql.Identifier("pgdefect", "defect_embedding"),
            [
                ("extractor_id", np.full(len(embeddings), extractor_id, dtype=np.int64)),
                ("image_id", np.asarray(image_ids, dtype=np.int64)),
                ("detector_id", np.full(len(embeddings), detector_id, dtype=np.int64)),
                ("embedding", embeddings.astype(np.float16)),
            ],
        )


def add_regions(
    database: Database,
    extractor_id: int,
    detector_id: int,
    image_ids: Sequence[int] | NDArray[np.int64],
    embeddings: Float32,
) -> list[int]:
    """One region per vector, an image's in the order of their rank; returns their ids."""
    images = np.asarray(image_ids, dtype=np.int64)
    n = len(images)
    rank = np.array([(images[:i] == image).sum() + 1 for i, image in enumerate(images)])
    with database.begin() as connection:
        last = connection.scalar(text("SELECT coalesce(max(id), 0) FROM pgdefect.defect_region"))
        copy_rows(
            driver(connection),
            sql.Identifier("pgdefect", "defect_region"),
            [
                ("extractor_id", np.full(n, extractor_id, dtype=np.int64)),
                ("image_id", images),
                ("detector_id", np.full(n, detector_id, dtype=np.int64)),
                ("rank", rank.astype(np.int16)),
                *[(name, np.full(n, 8, dtype=np.int32)) for name in ("x", "y", "width", "height")],
                ("num_patches", np.full(n, 2, dtype=np.int32)),
                *[
                    (name, np.full(n, 0.5, dtype=np.float32))
                    for name in ("area", "peak_score", "mean_score")
                ],
                ("embedding", embeddings.astype(np.float16)),
            ],
        )
        ids = connection.scalars(
            text("SELECT id FROM pgdefect.defect_region WHERE id > :last ORDER BY id"),
            {"last": last},
        )
        return list(ids)


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


def scans(database: Database, index: str) -> int:
    """How often the index was scanned; backends report when they end."""
    database.dispose()
    deadline = time.monotonic() + 10
    with psycopg.connect(database.url, autocommit=True) as connection:
        while connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
            "AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
        ).fetchone() != (0,):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        row = connection.execute(
            "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = %s", [index]
        ).fetchone()
    assert row is not None, f"there is no index {index}"
    return int(row[0])


@contextmanager
def index_scanned(database: Database, index: str, at_least: int = 1) -> Iterator[None]:
    before = scans(database, index)
    yield
    assert scans(database, index) - before >= at_least


@contextmanager
def index_left_alone(database: Database, index: str) -> Iterator[None]:
    before = scans(database, index)
    yield
    assert scans(database, index) == before
