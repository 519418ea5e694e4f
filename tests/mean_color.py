"""A kind of detector that pgdefect does not have: what it takes to add one is what stands here.

It knows the mean color of normal images, and how far a cell's mean color lies from it is the
cell's score. It has neither a memory bank nor a network of its own: what it learned is three
numbers, in the detector's settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
from sqlalchemy import Connection, text

from pgdefect.core.config import Settings
from pgdefect.core.detector_kinds import DetectorKind
from pgdefect.core.outliers import threshold_without
from pgdefect.core.progress import Progress
from pgdefect.core.types import Detector, Float32, PatchScores
from pgdefect.db.connection.engine import Database
from pgdefect.db.records.catalog import category_id as find_category
from pgdefect.db.records.detectors import active_detector, add_detector, reserve_detector
from pgdefect.db.records.extractors import load_extractor
from pgdefect.db.records.outliers import Outlier
from pgdefect.db.records.thresholds import store_first_threshold
from pgdefect.db.search.queries import images_of
from pgdefect.usecases.common.patch_search import SearchKind
from pgdefect.usecases.common.stored_files import image_batches
from pgdefect.usecases.inspect.judge import Scored
from pgdefect.vision.networks.extractor import Extractor, image_embeddings


@dataclass(frozen=True)
class MeanColorOptions:
    false_reject_rate: float = 0.05
    seed: int = 0

    def recorded(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class MeanColorReport:
    category: str
    detector_id: int
    training_images: int
    held_out_images: int
    threshold: float
    color: tuple[float, ...]
    seconds: Mapping[str, float] = field(default_factory=dict)
    failed: tuple[tuple[str, str], ...] = ()
    outliers: tuple[Outlier, ...] = ()
    threshold_with_outliers: float | None = None

    @property
    def made(self) -> dict[str, float]:
        return {"red": self.color[0]}


def cells(images: Float32, grid: tuple[int, int]) -> Float32:
    """Mean colors `(n, rows, cols, 3)` of the cells of images `(n, 3, height, width)`."""
    n, channels, height, width = images.shape
    rows, cols = grid
    blocks = images.reshape(n, channels, rows, height // rows, cols, width // cols)
    return np.asarray(blocks.mean(axis=(3, 5)).transpose(0, 2, 3, 1), dtype=np.float32)


def color_distances(images: Float32, grid: tuple[int, int], color: Float32) -> Float32:
    """Distances `(n, rows, cols)` of the cells' colors from `color`, `(3,)`."""
    return np.asarray(np.linalg.norm(cells(images, grid) - color, axis=-1), dtype=np.float32)


def train_mean_color(
    database: Database,
    settings: Settings,
    category: str,
    options: MeanColorOptions,
    *,
    progress: Progress,
) -> MeanColorReport:
    with database.connect() as connection:
        category_id = find_category(connection, category)
    # Pictures are prepared, and searched, as PatchCore's extractor does it.
    extractor_id = active_detector(database, category, "patchcore").extractor_id
    extractor = Extractor(load_extractor(database, extractor_id, settings.cache_dir))
    images = [i for i in images_of(database, category, split="train") if i.known_label == "normal"]
    failed: list[tuple[str, str]] = []
    batches = list(image_batches(images, extractor.preprocessing, 8, failed))
    inputs = np.concatenate([batch.inputs for batch in batches])
    ids = [images[index].id for batch in batches for index in batch.indices]
    color = inputs.mean(axis=(0, 2, 3), dtype=np.float64).astype(np.float32)
    grid = (extractor.artifact.rows, extractor.artifact.cols)
    worst = color_distances(inputs, grid, color).max(axis=(1, 2)).tolist()
    scores = dict(zip(ids, worst, strict=True))
    threshold = threshold_without(
        set(), scores, options.false_reject_rate, {i.id: i.part or i.path for i in images}
    )

    def work(connection: Connection) -> int:
        detector_id = reserve_detector(connection, category_id)
        add_detector(
            connection,
            detector_id,
            category_id=category_id,
            extractor_id=extractor_id,
            kind="mean_color",
            threshold=threshold,
            settings={**options.recorded(), "color": color.tolist()},
            metrics={},
            library_versions={},
        )
        store_first_threshold(connection, detector_id, threshold, scores)
        return detector_id

    detector_id = database.transact(work)
    progress("train", 1, 1)
    return MeanColorReport(
        category, detector_id, len(ids), len(ids), threshold.value, tuple(color.tolist())
    )


class MeanColorJudge:
    extractor = None

    def __init__(
        self, database: Database, settings: Settings, detector: Detector, search: SearchKind | None
    ) -> None:
        self.network = Extractor(
            load_extractor(database, detector.extractor_id, settings.cache_dir)
        )
        self.preprocessing = self.network.preprocessing
        with database.connect() as connection:
            color = connection.scalar(
                text("SELECT settings->'color' FROM pgdefect.detector WHERE id = :id"),
                {"id": detector.id},
            )
        self.color = np.array(color, dtype=np.float32)

    def __call__(self, images: Float32) -> Scored:
        patches = self.network(images)
        distances = color_distances(images, patches.shape[1:3], self.color)
        scores = [partial(_scores, one) for one in distances]
        return image_embeddings(patches), scores, [None] * len(scores)


def _scores(distances: Float32, num_threads: int) -> PatchScores:
    row, col = np.unravel_index(distances.argmax(), distances.shape)
    return PatchScores(distances, None, int(row), int(col), float(distances.max()))


MEAN_COLOR = DetectorKind(
    "mean_color",
    "a mean color",
    has_bank=False,
    has_network=False,
    resumes=False,
    options=MeanColorOptions,
    train=train_mean_color,
    judge=MeanColorJudge,
)
