"""Memory banks from and to anomalib's Patchcore checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pgdefect import thresholds
from pgdefect.config import Settings
from pgdefect.db.banks import Calibration, store_detector
from pgdefect.db.catalog import category_id as find_category
from pgdefect.db.detectors import active_detector
from pgdefect.db.engine import Database
from pgdefect.db.extractors import find_extractor, load_extractor, store_extractor
from pgdefect.db.queries import bank_cells, images_of, read_bank, stored_images
from pgdefect.distance import L2, index_expression
from pgdefect.errors import Conflict, ImageError, TooFewImages, UsageError, WeightsError
from pgdefect.pipeline.bank import calibration_sample
from pgdefect.pipeline.patch_search import BankSearch, score_image
from pgdefect.pipeline.progress import Progress, silent
from pgdefect.pipeline.train import MIN_IMAGES, embed_images
from pgdefect.thresholds import DEFAULT_FALSE_REJECT_RATE
from pgdefect.types import (
    UNKNOWN_IMAGE,
    Detector,
    EmbeddingTransform,
    Float32,
    MemoryBank,
    StoredImage,
    Threshold,
)
from pgdefect.vision import patchcore
from pgdefect.vision.anomalib_checkpoint import AnomalibBank, read_checkpoint, write_checkpoint
from pgdefect.vision.backbone import StateDict, backbone_of_timm, find_backbone
from pgdefect.vision.extractor import BATCH_SIZE, Extractor
from pgdefect.vision.preprocess import Preprocessing, batches
from pgdefect.vision.training import library_versions

SAME_PATCH = 1e-4
"""A patch this near to a bank vector, as a share of the bank's norms, is that vector."""


@dataclass(frozen=True)
class ImportReport:
    """What an import made. learned_images: stored images that the bank was made from."""

    category: str
    detector_id: int
    extractor_id: int
    bank_vectors: int
    embedding_dim: int
    num_neighbors: int
    threshold: float
    held_out_images: int
    learned_images: int
    failed: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote; vectors says whether they are the stored ones or read again."""

    category: str
    detector_id: int
    path: Path
    bank_vectors: int
    embedding_dim: int
    vectors: str
    threshold: float | None


def import_anomalib(
    database: Database,
    settings: Settings,
    checkpoint: Path,
    category: str,
    *,
    threshold: float | None = None,
    image_size: tuple[int, int] | None = None,
    center_crop: tuple[int, int] | None = None,
    false_reject_rate: float = DEFAULT_FALSE_REJECT_RATE,
    progress: Progress = silent,
) -> ImportReport:
    """Make a checkpoint of anomalib's Patchcore the active detector of a category.

    The bank is stored as it is: Euclidean, not transformed, in single precision. Where its
    vectors came from is not known. The threshold is the one given, or comes from the
    category's normal training images, leaving out those that the bank was made from: they
    have a patch that is a bank vector. `image_size` and `center_crop` stand in for a
    pre-processor that the checkpoint does not have, or replace it.

    Raises:
        UnknownCategory, WeightsError, UsageError, MissingExtra;
        TooFewImages: too few other normal images, and no threshold given;
        Busy: the category is being trained.
    """
    if threshold is not None and not 0.0 < threshold < float("inf"):
        raise UsageError(f"--threshold must be a number above 0, not {threshold}")
    if center_crop is not None and image_size is None:
        raise UsageError("--center-crop cuts out of a resized image: give --image-size with it")
    with database.connect() as connection:
        category_id = find_category(connection, category)
    with database.lock(f"training of {category}"):
        found = read_checkpoint(checkpoint)
        embedder = _embedder(found, checkpoint, image_size, center_crop)
        progress("extractor", 0, 1)
        extractor_id = find_extractor(database, embedder.spec.fingerprint)
        if extractor_id is None:
            extractor_id = store_extractor(database, embedder.export())
        extractor = Extractor(load_extractor(database, extractor_id, settings.cache_dir))
        progress("extractor", 1, 1)
        if found.memory_bank.shape[1] != extractor.artifact.embedding_dim:
            raise WeightsError(
                f"the memory bank of {checkpoint} has {found.memory_bank.shape[1]} dimensions, and "
                f"{found.backbone} gives {extractor.artifact.embedding_dim} with the layers "
                f"{', '.join(found.layers)}"
            )
        bank = _bank(found)
        failed: list[tuple[str, str]] = []
        everything = images_of(database, category)
        held_out = _score(
            BankSearch(bank.embeddings, L2, bank.num_neighbors),
            extractor,
            _to_score(everything, threshold),
            failed,
            progress,
        )
        detector_id = store_detector(
            database,
            category_id=category_id,
            extractor_id=extractor_id,
            bank=bank,
            threshold=_threshold(held_out, threshold, false_reject_rate, category),
            holdout_scores=held_out.scores,
            calibration=held_out.calibration(),
            settings={"imported": checkpoint.name, "weights": embedder.spec.weights_source},
            metrics={},
            library_versions=library_versions(),
            progress=progress,
        )
        failed = embed_images(database, extractor, extractor_id, everything, progress)
        detector = active_detector(database, category, "patchcore")
    return ImportReport(
        category,
        detector_id,
        extractor_id,
        len(bank.embeddings),
        bank.embeddings.shape[1],
        bank.num_neighbors,
        detector.threshold,
        len(held_out.scores),
        held_out.learned,
        tuple(failed),
    )


def export_anomalib(
    database: Database,
    settings: Settings,
    category: str,
    path: Path,
    *,
    weights: Path | None = None,
    progress: Progress = silent,
) -> ExportReport:
    """Write a category's active bank as a checkpoint of anomalib's Patchcore.

    anomalib compares raw vectors by Euclidean distance. A bank stored so is written as it
    is, with its threshold. Vectors of any other bank are read again, raw, from the images
    and cells they came from; its threshold measures something else and is left out.

    weights: needed where the extractor's came from a file.

    Raises:
        UnknownCategory, NoActiveDetector, MissingExtra;
        WeightsError: the extractor's weights are not to be had;
        ImageError, Conflict: an image that the bank came from is gone or has changed.
    """
    detector = active_detector(database, category, "patchcore")
    bank = detector.bank
    artifact = load_extractor(database, detector.extractor_id, settings.cache_dir)
    spec = artifact.spec
    preprocessing = Preprocessing.from_dict(spec.preprocessing)
    if preprocessing.resize != "stretch" or preprocessing.local_contrast is not None:
        raise UsageError(
            f"anomalib cannot prepare images as the detector of {category!r} does; train one that "
            "it can follow with: --resize stretch --local-contrast 0"
        )
    backbone = find_backbone(spec.backbone)
    given: Path | StateDict | None = weights
    if weights is not None and weights.suffix == ".ckpt":
        given = StateDict(f"checkpoint {weights.name}", read_checkpoint(weights).weights)
    embedder = patchcore.build_embedder(backbone, spec.layers, preprocessing, given)
    if embedder.spec.fingerprint != spec.fingerprint:
        raise WeightsError(
            f"these are not the weights that {category} was trained with, which came from "
            f"{spec.weights_source}; name that file with --weights"
        )
    as_stored = bank.transform.kind == "none" and bank.metric is L2
    if as_stored:
        vectors = read_bank(database, bank)
    else:
        vectors = _read_again(database, detector, Extractor(artifact), progress)
    # anomalib's score is the worst patch's; a threshold for another one would mislead.
    threshold = detector.threshold if as_stored and not bank.worst_share else None
    write_checkpoint(
        path,
        vectors,
        embedder.lightning_model.state_dict(),
        backbone=backbone.timm_name,
        layers=spec.layers,
        num_neighbors=bank.num_neighbors,
        coreset_ratio=bank.coreset_ratio,
        preprocessing=preprocessing,
        threshold=threshold,
    )
    return ExportReport(
        category,
        detector.id,
        path,
        len(vectors),
        vectors.shape[1],
        "as stored" if as_stored else "read again",
        threshold,
    )


def _embedder(
    found: AnomalibBank,
    checkpoint: Path,
    image_size: tuple[int, int] | None,
    center_crop: tuple[int, int] | None,
) -> patchcore.PatchEmbedder:
    backbone = backbone_of_timm(found.backbone)
    if image_size is not None:
        preprocessing = Preprocessing(
            image_size=image_size, center_crop=center_crop, mean=backbone.mean, std=backbone.std
        )
    else:
        known = found.preprocessing()
        if known is None:
            raise UsageError(
                f"{checkpoint} does not say what its images were resized to; give --image-size"
            )
        preprocessing = known
    weights = StateDict(f"checkpoint {checkpoint.name}", found.weights)
    return patchcore.build_embedder(backbone, found.layers, preprocessing, weights)


def _bank(found: AnomalibBank) -> MemoryBank:
    count, dim = found.memory_bank.shape
    index_expression("vector", dim)
    return MemoryBank(
        embeddings=found.memory_bank,
        image_ids=np.full(count, UNKNOWN_IMAGE, dtype=np.int64),
        rows=np.zeros(count, dtype=np.int16),
        cols=np.zeros(count, dtype=np.int16),
        num_images=0,
        transform=EmbeddingTransform("none"),
        metric=L2,
        precision="single",
        coreset_ratio=found.coreset_ratio,
        covering_radius=float("nan"),
        num_neighbors=found.num_neighbors,
    )


def _to_score(images: Sequence[StoredImage], threshold: float | None) -> list[StoredImage]:
    """Normal training images; with a threshold given any images will do, and a few."""
    normal = [image for image in images if image.split == "train" and image.label == "normal"]
    if threshold is None:
        return normal
    return [*normal, *(image for image in images if image not in normal)][: 4 * MIN_IMAGES]


class _HeldOut:
    """What scoring the images gave: those the bank was not made from, and patches of all."""

    def __init__(self) -> None:
        self.scores: dict[int, float] = {}
        """Raw score by image id, of normal training images only."""
        self.learned = 0
        self.samples: list[tuple[bool, Float32, Float32]] = []
        """Of each image whether the bank was made from it, some patches and their distances."""

    def calibration(self) -> Calibration:
        """Of images the bank was not made from, where there are any: theirs are harder to find."""
        unseen = [sample for sample in self.samples if not sample[0]] or self.samples
        return Calibration(
            np.concatenate([queries for _, queries, _ in unseen]),
            np.concatenate([distances for _, _, distances in unseen]),
        )


def _score(
    search: BankSearch,
    extractor: Extractor,
    images: Sequence[StoredImage],
    failed: list[tuple[str, str]],
    progress: Progress,
) -> _HeldOut:
    result = _HeldOut()
    rng = np.random.default_rng(0)
    norm = float(np.sqrt(np.einsum("nd,nd->n", search.vectors, search.vectors).mean()))

    def on_error(index: int, error: ImageError) -> None:
        failed.append((images[index].path, str(error)))

    paths = [image.path for image in images]
    for batch in batches(
        paths, extractor.preprocessing, BATCH_SIZE, num_threads=2, on_error=on_error
    ):
        for index, patches in zip(batch.indices, extractor(batch.inputs), strict=True):
            image = images[index]
            vectors = patches.reshape(-1, patches.shape[-1])
            scores = score_image(search, vectors, patches.shape[:2])
            distances = scores.distances.reshape(-1)
            learned = float(distances.min()) <= SAME_PATCH * norm
            if learned:
                result.learned += 1
            elif image.split == "train" and image.label == "normal":
                result.scores[image.id] = scores.raw_score
            some = calibration_sample(rng, len(vectors), len(images))
            result.samples.append((learned, vectors[some], distances[some]))
            progress("threshold", len(result.samples) + len(failed), len(images))
    if not result.samples:
        raise TooFewImages(
            "no image of the category can be read, and the index is calibrated on some"
            + (f"; first: {failed[0][1]}" if failed else "; add some with: pgdefect ingest")
        )
    return result


def _threshold(
    held_out: _HeldOut, given: float | None, false_reject_rate: float, category: str
) -> Threshold:
    scores = list(held_out.scores.values())
    if given is None:
        if len(scores) < MIN_IMAGES:
            raise TooFewImages(
                f"category {category!r} has {len(scores)} normal training images that the bank was "
                f"not made from ({held_out.learned} it was), and a threshold needs {MIN_IMAGES}. "
                "Add some with pgdefect ingest, or give --threshold"
            )
        return thresholds.false_reject_rate(scores, false_reject_rate)
    return thresholds.given(given, scores)


def _read_again(
    database: Database, detector: Detector, extractor: Extractor, progress: Progress
) -> Float32:
    """Raw vectors of a bank, from the images they came from."""
    image_ids, rows, cols = bank_cells(database, detector.bank)
    ids = np.unique(image_ids)
    with database.connect() as connection:
        stored = stored_images(connection, ids.tolist())
    if len(stored) != len(ids):
        raise Conflict(
            f"{len(ids) - len(stored)} of the {len(ids)} images that the bank of "
            f"{detector.category} came from are not stored any more; train it again"
        )
    images = [stored[int(image_id)] for image_id in ids]
    result = np.empty((len(image_ids), extractor.artifact.embedding_dim), dtype=np.float32)

    def on_error(index: int, error: ImageError) -> None:
        raise error

    stream = batches(
        [image.path for image in images],
        extractor.preprocessing,
        BATCH_SIZE,
        num_threads=2,
        on_error=on_error,
    )
    for batch in stream:
        patches = extractor(batch.inputs)
        for n, index in enumerate(batch.indices):
            if batch.files[n].sha256 != images[index].sha256:
                raise Conflict(
                    f"{images[index].path} has changed since {detector.category} was trained; "
                    "train it again"
                )
            of_image: NDArray[np.bool_] = image_ids == ids[index]
            result[of_image] = patches[n, rows[of_image], cols[of_image]]
        progress("extract", batch.indices[-1] + 1, len(images))
    return result
