"""Train a detector for a category: extract, select, calibrate, export."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pgdefect.config import Settings
from pgdefect.db.banks import Calibration, store_detector
from pgdefect.db.catalog import category_id as find_category
from pgdefect.db.engine import Database
from pgdefect.db.extractors import (
    find_extractor,
    images_without_embedding,
    load_extractor,
    store_extractor,
    store_image_embeddings,
)
from pgdefect.db.queries import images_of
from pgdefect.distance import COSINE, Precision, as_stored, index_expression, metric_named
from pgdefect.errors import ImageError, TooFewImages, UsageError
from pgdefect.pipeline.patch_search import BankSearch, score_image
from pgdefect.pipeline.progress import Progress, silent
from pgdefect.threads import one_blas_thread_each
from pgdefect.types import Float32, MemoryBank, PatchScores, StoredImage, Threshold
from pgdefect.vision import patchcore
from pgdefect.vision.backbone import DEFAULT_BACKBONE, find_backbone
from pgdefect.vision.coreset import k_center_greedy
from pgdefect.vision.extractor import BATCH_SIZE, Extractor, image_embeddings
from pgdefect.vision.patch_spool import PatchSpool
from pgdefect.vision.preprocess import Batch, Preprocessing, batches
from pgdefect.vision.scoring import DEFAULT_FALSE_REJECT_RATE, threshold_for_false_rejects
from pgdefect.vision.transform import (
    BLOCK,
    DEFAULT_PCA_DIM,
    apply_transform,
    fit_transform,
    transformed_dim,
)

MIN_IMAGES = 5
MAX_SIDE = 4096
"""Larger images are refused: their feature maps would take tens of gigabytes."""
CALIBRATION_PATCHES = 2048


@dataclass(frozen=True)
class TrainOptions:
    """Everything a user can choose about a training; sizes are `(height, width)`."""

    backbone: str = DEFAULT_BACKBONE
    layers: tuple[str, ...] = ()
    weights: Path | None = None
    image_size: tuple[int, int] = (256, 256)
    center_crop: tuple[int, int] | None = None
    coreset_ratio: float = 0.1
    num_neighbors: int = 1
    holdout: float = 0.2
    false_reject_rate: float = DEFAULT_FALSE_REJECT_RATE
    transform: Literal["centered", "unit", "none"] = "centered"
    pca_dim: int | None = DEFAULT_PCA_DIM
    metric: str = "cosine"
    precision: Precision = "half"
    max_patches: int | None = None
    seed: int = 0
    batch_size: int = BATCH_SIZE
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not 0.0 < self.coreset_ratio <= 1.0:
            raise UsageError(
                f"--coreset-ratio must be above 0 and at most 1, not {self.coreset_ratio}"
            )
        if not 0.0 < self.holdout < 1.0:
            raise UsageError(f"--holdout must lie between 0 and 1, not {self.holdout}")
        if not 0.0 < self.false_reject_rate < 1.0:
            raise UsageError(
                f"--false-reject-rate must lie between 0 and 1, not {self.false_reject_rate}"
            )
        if self.num_neighbors < 1:
            raise UsageError(f"--num-neighbors must be at least 1, not {self.num_neighbors}")
        if self.max_patches is not None and self.max_patches < 1:
            raise UsageError(f"--max-patches must be at least 1, not {self.max_patches}")
        if self.batch_size < 1:
            raise UsageError(f"--batch-size must be at least 1, not {self.batch_size}")
        if self.seed < 0:
            raise UsageError(f"--seed must be 0 or more, not {self.seed}")
        if self.pca_dim is not None and self.pca_dim < 1:
            raise UsageError(f"--pca-dim must be at least 1, or 0 to keep all, not {self.pca_dim}")
        for option, size in (("image-size", self.image_size), ("center-crop", self.center_crop)):
            if size is not None and max(size) > MAX_SIDE:
                raise UsageError(f"--{option} must be at most {MAX_SIDE} a side, not {max(size)}")
        if metric_named(self.metric) is COSINE and self.transform == "none":
            raise UsageError(
                "cosine distance compares directions: use --transform centered (the default) or "
                "unit with it, or --metric l2 with --transform none"
            )


@dataclass(frozen=True)
class TrainReport:
    """What a training made; seconds by stage."""

    category: str
    detector_id: int
    training_images: int
    held_out_images: int
    bank_vectors: int
    embedding_dim: int
    covering_radius: float
    threshold: float
    extractor_id: int
    seconds: dict[str, float] = field(default_factory=dict)
    failed: tuple[tuple[str, str], ...] = ()


def train(
    database: Database,
    settings: Settings,
    category: str,
    options: TrainOptions,
    *,
    progress: Progress = silent,
) -> TrainReport:
    """Learn what is normal for a category from its normal training images.

    A share of them (`holdout`, by group) is kept out of the bank to set the threshold. The
    new detector replaces the active one in the transaction that stores it; interrupted at
    any moment before, nothing changes.

    Raises:
        UnknownCategory, TooFewImages, UsageError, WeightsError, MissingExtra;
        Busy: the category is being trained already.
    """
    with database.connect() as connection:
        category_id = find_category(connection, category)
    with database.lock(f"training of {category}"):
        return _train(database, settings, category, category_id, options, progress)


def _train(
    database: Database,
    settings: Settings,
    category: str,
    category_id: int,
    options: TrainOptions,
    progress: Progress,
) -> TrainReport:
    clock = _Clock()
    everything = images_of(database, category)
    normal = [i for i in everything if i.split == "train" and i.label == "normal"]
    if len(normal) < MIN_IMAGES:
        raise TooFewImages(
            f"category {category!r} has {len(normal)} normal training images and needs at least "
            f"{MIN_IMAGES}. Add some with: pgdefect ingest PATH --category {category}"
        )
    failed: list[tuple[str, str]] = []

    bank_images, held_out = split_holdout(normal, options.holdout, options.seed)

    with clock("extractor"):
        extractor, extractor_id, embedder = _extractor(database, settings, options, progress)
    with PatchSpool(settings.cache_dir, options.precision) as spool:
        with clock("extract"):
            means = _extract(
                embedder, extractor, [*bank_images, *held_out], spool, options, failed, progress
            )
        bank_ids = [image.id for image in bank_images if image.id in means]
        held_out_ids = [image.id for image in held_out if image.id in means]
        if len(means) < MIN_IMAGES or not bank_ids or not held_out_ids:
            raise TooFewImages(
                f"only {len(means)} of {len(normal)} training images of {category!r} can be read, "
                f"and {MIN_IMAGES} are needed; first: {failed[0][1]}"
            )
        with clock("coreset"):
            bank = _build_bank(spool, bank_ids, options, progress)
        with clock("threshold"):
            threshold, calibration = _calibrate(
                bank, spool.patches[len(bank_ids) :], options, progress
            )
    with clock("export"):
        with database.begin() as connection:
            missing = images_without_embedding(connection, extractor_id, list(means))
            if missing:
                embeddings = np.stack([means[image_id] for image_id in missing])
                store_image_embeddings(connection, extractor_id, missing, embeddings)
        detector_id = store_detector(
            database,
            category_id=category_id,
            extractor_id=extractor_id,
            bank=bank,
            threshold=threshold,
            calibration=calibration,
            settings=_settings(options),
            metrics={},
            library_versions=patchcore.library_versions(),
            progress=progress,
        )
    with clock("embed"):
        others = [image for image in everything if image.id not in means]
        failed += embed_images(database, extractor, extractor_id, others, progress)
    return TrainReport(
        category,
        detector_id,
        len(bank_ids),
        len(held_out_ids),
        len(bank.embeddings),
        bank.embeddings.shape[1],
        bank.covering_radius,
        threshold.value,
        extractor_id,
        clock.seconds,
        tuple(failed),
    )


def split_holdout(
    images: Sequence[StoredImage], fraction: float, seed: int
) -> tuple[list[StoredImage], list[StoredImage]]:
    """Keep about `fraction` of the images out of the bank; a group is never split.

    Both parts have at least one image. Raises TooFewImages where all share one group.
    """
    groups: dict[str, list[StoredImage]] = {}
    for image in images:
        groups.setdefault(f"g{image.group}" if image.group else f"i{image.id}", []).append(image)
    if len(groups) < 2:
        raise TooFewImages(
            f"all {len(images)} training images belong to one group (part), so that none can be "
            "held out for the threshold; add images of other parts"
        )
    names = sorted(groups)
    order = np.random.default_rng(seed).permutation(len(names))
    wanted = max(1, round(fraction * len(images)))
    held: set[str] = set()
    count = 0
    for index in order[:-1]:
        if count >= wanted:
            break
        held.add(names[index])
        count += len(groups[names[index]])
    kept = [image for name in names if name not in held for image in groups[name]]
    out = [image for name in names if name in held for image in groups[name]]
    return sorted(kept, key=lambda i: i.id), sorted(out, key=lambda i: i.id)


def embed_images(
    database: Database,
    extractor: Extractor,
    extractor_id: int,
    images: Sequence[StoredImage],
    progress: Progress = silent,
) -> list[tuple[str, str]]:
    """Make the image embeddings that are missing; returns path and reason of failures."""
    with database.connect() as connection:
        missing = set(
            images_without_embedding(connection, extractor_id, [image.id for image in images])
        )
    todo = [image for image in images if image.id in missing]
    failed: list[tuple[str, str]] = []
    stream = _batches(todo, extractor.preprocessing, BATCH_SIZE, failed)
    done = 0
    for batch in stream:
        embeddings = image_embeddings(extractor(batch.inputs))
        with database.begin() as connection:
            ids = [todo[index].id for index in batch.indices]
            store_image_embeddings(connection, extractor_id, ids, embeddings)
        done += len(ids)
        progress("embed", done, len(todo))
    return failed


def _extractor(
    database: Database, settings: Settings, options: TrainOptions, progress: Progress
) -> tuple[Extractor, int, patchcore.PatchEmbedder]:
    progress("extractor", 0, 0)
    patchcore.check_device(options.device)
    backbone = find_backbone(options.backbone)
    preprocessing = Preprocessing(
        image_size=options.image_size,
        center_crop=options.center_crop,
        mean=backbone.mean,
        std=backbone.std,
    )
    embedder = patchcore.build_embedder(
        backbone, options.layers or backbone.layers, preprocessing, options.weights
    )
    extractor_id = find_extractor(database, embedder.spec.fingerprint)
    if extractor_id is None:
        extractor_id = store_extractor(database, embedder.export())
    extractor = Extractor(load_extractor(database, extractor_id, settings.cache_dir))
    progress("extractor", 1, 1)
    return extractor, extractor_id, embedder


def _extract(
    embedder: patchcore.PatchEmbedder,
    extractor: Extractor,
    images: Sequence[StoredImage],
    spool: PatchSpool,
    options: TrainOptions,
    failed: list[tuple[str, str]],
    progress: Progress,
) -> dict[int, Float32]:
    """Spool the patches of all readable images in order; image embeddings by image id."""
    artifact = extractor.artifact
    spool.allocate(len(images), (artifact.rows, artifact.cols, artifact.embedding_dim))
    means: dict[int, Float32] = {}

    def consume(batch: Batch) -> None:
        if options.device == "cpu":
            patches = extractor(batch.inputs)
        else:
            patches = embedder.embed(batch.inputs, options.device)
        spool.append(patches)
        ids = [images[index].id for index in batch.indices]
        means.update(zip(ids, image_embeddings(patches), strict=True))
        progress("extract", len(means), len(images))

    stream = _batches(images, extractor.preprocessing, options.batch_size, failed)
    patchcore.run_engine(embedder, stream, consume, device=options.device)
    return means


def _batches(
    images: Sequence[StoredImage],
    preprocessing: Preprocessing,
    batch_size: int,
    failed: list[tuple[str, str]],
) -> Iterator[Batch]:
    def on_error(index: int, error: ImageError) -> None:
        failed.append((images[index].path, str(error)))

    return batches(
        [image.path for image in images],
        preprocessing,
        batch_size,
        num_threads=2,
        on_error=on_error,
    )


def _build_bank(
    spool: PatchSpool, image_ids: Sequence[int], options: TrainOptions, progress: Progress
) -> MemoryBank:
    """Transform all patches, pick the coreset among them, remember where each came from.

    The bank's images are the first ones of the spool.
    """
    metric = metric_named(options.metric)
    raw = spool.patches[: len(image_ids)]
    _, rows, cols, raw_dim = raw.shape
    flat = raw.reshape(-1, raw_dim)
    candidates = _candidates(len(flat), options)
    progress("coreset", 0, 0)
    transform = fit_transform(flat, kind=options.transform, pca_dim=options.pca_dim)
    dim = transformed_dim(transform, raw_dim)
    index_expression(options.precision, dim)
    embeddings = spool.scratch((len(flat) if candidates is None else len(candidates), dim))
    for start in range(0, len(embeddings), BLOCK):
        part = slice(start, start + BLOCK)
        block = flat[part] if candidates is None else flat[candidates[part]]
        embeddings[part] = as_stored(
            apply_transform(transform, block.astype(np.float32)), options.precision
        )
    coreset = k_center_greedy(
        embeddings,
        max(1, round(options.coreset_ratio * len(embeddings))),
        seed=options.seed,
        progress=lambda done, total: progress("coreset", done, total),
        device=None if options.device == "cpu" else options.device,
    )
    picked = coreset.indices if candidates is None else candidates[coreset.indices]
    image_index, cell = np.divmod(picked, rows * cols)
    row, col = np.divmod(cell, cols)
    return MemoryBank(
        embeddings=embeddings[coreset.indices].astype(np.float32),
        image_ids=np.asarray(image_ids, dtype=np.int64)[image_index],
        rows=row.astype(np.int16),
        cols=col.astype(np.int16),
        num_images=len(image_ids),
        transform=transform,
        metric=metric,
        precision=options.precision,
        coreset_ratio=options.coreset_ratio,
        covering_radius=coreset.covering_radius,
        num_neighbors=options.num_neighbors,
    )


def _candidates(num_patches: int, options: TrainOptions) -> NDArray[np.int64] | None:
    """A random subset for the coreset to be picked from, where all would be too many."""
    if options.max_patches is None or num_patches <= options.max_patches:
        return None
    rng = np.random.default_rng(options.seed)
    return np.sort(rng.choice(num_patches, options.max_patches, replace=False))


def _calibrate(
    bank: MemoryBank, held_out: NDArray[Any], options: TrainOptions, progress: Progress
) -> tuple[Threshold, Calibration]:
    """Score the held-out images exactly: the threshold, and queries to choose ef_search by."""
    search = BankSearch(bank.embeddings, bank.metric, bank.num_neighbors)
    count, rows, cols, dim = held_out.shape
    rng = np.random.default_rng(options.seed)
    sampled = -(-CALIBRATION_PATCHES // count)

    def score(patches: NDArray[Any]) -> tuple[Float32, PatchScores]:
        flat = patches.reshape(-1, dim).astype(np.float32)
        vectors = as_stored(apply_transform(bank.transform, flat), bank.precision)
        return vectors, score_image(search, vectors, (rows, cols))

    scores = np.empty(count)
    queries: list[Float32] = []
    distances: list[Float32] = []
    with one_blas_thread_each() as num_threads, ThreadPoolExecutor(num_threads) as pool:
        for n, (vectors, result) in enumerate(pool.map(score, held_out)):
            scores[n] = result.raw_score
            some = rng.choice(len(vectors), min(sampled, len(vectors)), replace=False)
            queries.append(vectors[some])
            distances.append(result.distances.reshape(-1)[some])
            progress("threshold", n + 1, count)
    threshold = threshold_for_false_rejects(scores, options.false_reject_rate)
    return threshold, Calibration(np.concatenate(queries), np.concatenate(distances))


def _settings(options: TrainOptions) -> dict[str, Any]:
    values = asdict(options)
    values["weights"] = None if options.weights is None else options.weights.name
    return values


class _Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] = time.perf_counter() - start
