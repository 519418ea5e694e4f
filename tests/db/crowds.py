"""Thousands of rows, in a database and in memory: enough for an index to be worth its while."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rows import (
    add_defect_embeddings,
    add_defect_space,
    add_embeddings,
    add_extractor,
    add_images,
    add_regions,
    memory_bank,
    store,
    unit_vectors,
)
from sqlalchemy import text

from pgdefect.core.distance import COSINE, L2, Metric, Precision, as_stored
from pgdefect.core.types import BankInfo, Float32, MemoryBank, SearchBy
from pgdefect.db.connection.engine import Database
from pgdefect.db.records.detectors import active_detector

IMAGES = 6000
IMAGE_DIM = 32
DEFECT_DIM = 16
PATCH_DIM = 24


@dataclass(frozen=True)
class Picture:
    """One stored image, as the reference knows it."""

    id: int
    number: int
    category: str
    label: str
    defect_type: str | None
    part: str | None
    sha256: str
    retired: bool
    split: str
    line: int


@dataclass(frozen=True)
class Crowd:
    """The database, and the same rows in memory; not to be written to.

    vectors: what searches by picture, defect and region compare, `(n, dim)`; owners: for each
    the index of its image.
    """

    database: Database
    extractor_id: int
    images: tuple[Picture, ...]
    vectors: dict[SearchBy, Float32]
    owners: dict[SearchBy, NDArray[np.int64]]
    banks: dict[tuple[str, Precision], tuple[BankInfo, MemoryBank]]


def build_crowd(database: Database) -> Crowd:
    images = _add_images(database)
    extractor_id = add_extractor(database, IMAGE_DIM)
    embeddings = _embeddings(images)
    add_embeddings(database, extractor_id, [image.id for image in images], embeddings)
    banks = {
        (metric.name, precision): _add_bank(database, extractor_id, metric, precision)
        for metric in (COSINE, L2)
        for precision in ("half", "single")
    }
    vectors: dict[SearchBy, Float32] = {"picture": embeddings}
    owners: dict[SearchBy, NDArray[np.int64]] = {"picture": np.arange(len(images))}
    vectors["defect"], owners["defect"] = _defects(images), np.arange(len(images))
    regions = np.random.default_rng(8).integers(2, size=len(images)) * 2
    owners["region"] = np.repeat(np.arange(len(images)), regions)
    vectors["region"] = _near(vectors["defect"][owners["region"]])
    _store_defects(database, extractor_id, banks["cosine", "half"][0].id, images, vectors, owners)
    with database.autocommit() as connection:
        connection.execute(
            "ANALYZE pgdefect.image, pgdefect.defect_embedding, pgdefect.defect_region"
        )
    return Crowd(database, extractor_id, images, vectors, owners, banks)


def _defects(images: tuple[Picture, ...]) -> Float32:
    """Clusters again; those of test images lie together, far from those of training images."""
    rng = np.random.default_rng(4)
    centers = rng.standard_normal((40, DEFECT_DIM))
    values = centers[[image.number % 40 for image in images]]
    values[:, 0] = [4.0 if image.split == "test" else -4.0 for image in images]
    return _near(values)


def _near(values: Float32) -> Float32:
    values = values + 0.3 * np.random.default_rng(5).standard_normal(values.shape)
    return as_stored(np.float32(values / np.linalg.norm(values, axis=1, keepdims=True)), "half")


def _store_defects(
    database: Database,
    extractor_id: int,
    detector_id: int,
    images: tuple[Picture, ...],
    vectors: dict[SearchBy, Float32],
    owners: dict[SearchBy, NDArray[np.int64]],
) -> None:
    add_defect_space(database, extractor_id, DEFECT_DIM)
    ids = np.array([image.id for image in images])
    add_defect_embeddings(database, extractor_id, detector_id, ids, vectors["defect"])
    add_regions(database, extractor_id, detector_id, ids[owners["region"]], vectors["region"])


def _add_images(database: Database) -> tuple[Picture, ...]:
    """Categories a (5,000), b (1,000), and gone, which is retired.

    Every 200th of a is `rare`, one is `single`; every 7th has a group of up to 10; of 100
    images the last is a copy of the first; every 50th from 25 on is retired. Every second is a
    test image, and of 20 each comes from a line of its own.
    """
    pictures: list[Picture] = []
    for category, total in (("a", 5000), ("b", 900), ("gone", 100)):
        defects = {
            n: "single" if n == 4321 else "rare"
            for n in range(total)
            if category == "a" and (n % 200 == 17 or n == 4321)
        }
        digests = [f"{hash_of(category, n - 99 if n % 100 == 99 else n)}" for n in range(total)]
        groups = [f"part{n // 70}" if n % 7 == 0 else None for n in range(total)]
        ids = add_images(
            database,
            category,
            total,
            sha256=lambda n, digests=digests: digests[n],
            label=lambda n, defects=defects: "anomalous" if n in defects else "normal",
            defect_type=lambda n, defects=defects: defects.get(n),
            group_name=lambda n, groups=groups: groups[n],
            split=lambda n: "test" if n % 2 else "train",
            attributes=lambda n: {"line": n % 20},
        )
        pictures += [
            Picture(
                id=ids[n],
                number=n,
                category=category,
                label="anomalous" if n in defects else "normal",
                defect_type=defects.get(n),
                part=groups[n],
                sha256=digests[n],
                retired=category == "gone" or n % 50 == 25,
                split="test" if n % 2 else "train",
                line=n % 20,
            )
            for n in range(total)
        ]
    with database.begin() as connection:
        gone = [p.id for p in pictures if p.retired and p.category != "gone"]
        connection.execute(
            text("UPDATE pgdefect.image SET retired_at = now() WHERE id = ANY(:ids)"), {"ids": gone}
        )
        connection.execute(
            text("UPDATE pgdefect.category SET retired_at = now() WHERE name = 'gone'")
        )
    return tuple(pictures)


def _embeddings(images: tuple[Picture, ...]) -> Float32:
    """Clusters; the rare lie in a cluster of their own, far from what other queries look at."""
    rng = np.random.default_rng(3)
    centers = rng.standard_normal((40, IMAGE_DIM))
    place = np.array([39 if image.defect_type else image.number % 39 for image in images])
    values = centers[place] + 0.5 * rng.standard_normal((len(images), IMAGE_DIM))
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    return values.astype(np.float16).astype(np.float32)


def _add_bank(
    database: Database, extractor_id: int, metric: Metric, precision: Precision
) -> tuple[BankInfo, MemoryBank]:
    category = f"{metric.name}_{precision}"
    ids = add_images(database, category, 10)
    vectors = unit_vectors(5, IMAGES, PATCH_DIM)
    if metric is L2:
        vectors = vectors * np.linspace(0.5, 3.0, IMAGES, dtype=np.float32)[:, None]
    bank = memory_bank(vectors, ids, metric=metric, precision=precision)
    store(database, category, extractor_id, bank)
    return active_detector(database, category).bank, bank


def hash_of(category: str, n: int) -> str:
    import hashlib

    return hashlib.sha256(f"{category} {n}".encode()).hexdigest()
