"""A category's memory bank as a checkpoint of anomalib's Patchcore."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pgdefect.core.config import Settings
from pgdefect.core.detector_kinds import PATCHCORE
from pgdefect.core.distance import L2
from pgdefect.core.errors import Conflict, ImageError, UsageError, WeightsError
from pgdefect.core.progress import Progress, silent
from pgdefect.core.types import Detector, Float32
from pgdefect.core.wording import option
from pgdefect.db.connection.engine import Database
from pgdefect.db.records.detectors import active_detector
from pgdefect.db.records.extractors import load_extractor
from pgdefect.db.search.queries import bank_cells, read_bank, stored_images
from pgdefect.usecases.exchange.export_folder import check_new_file
from pgdefect.vision.images.preprocess import Preprocessing, batches
from pgdefect.vision.networks.backbone import StateDict, find_backbone
from pgdefect.vision.networks.extractor import BATCH_SIZE, Extractor
from pgdefect.vision.patchcore import patchcore
from pgdefect.vision.patchcore.anomalib_checkpoint import read_checkpoint, write_checkpoint
from pgdefect.vision.patchcore.patchcore_inspection import is_pooled


@dataclass(frozen=True)
class CheckpointReport:
    """What was written; vectors says whether they are the stored ones or read again."""

    category: str
    detector_id: int
    path: Path
    bank_vectors: int
    embedding_dim: int
    vectors: str
    threshold: float | None


def export_anomalib(
    database: Database,
    settings: Settings,
    category: str,
    path: Path,
    *,
    weights: Path | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> CheckpointReport:
    """Write a category's active bank as a checkpoint of anomalib's Patchcore.

    anomalib compares raw vectors by Euclidean distance. A bank stored so is written as it
    is, with its threshold. Vectors of any other bank are read again, raw, from the images
    and cells they came from; its threshold measures something else and is left out.

    Args:
        weights: needed where the extractor's came from a file.

    Raises:
        UnknownCategory, NoActiveDetector, MissingExtra;
        UsageError: anomalib cannot make embeddings as the detector does; the file is there
            already, and not `force`;
        WeightsError: the extractor's weights are not to be had;
        ImageError, Conflict: an image that the bank came from is gone or has changed.
    """
    check_new_file(path, force=force)
    detector = active_detector(database, category, PATCHCORE)
    bank = detector.bank
    artifact = load_extractor(database, detector.extractor_id, settings.cache_dir)
    spec = artifact.spec
    if "+" in spec.backbone:
        raise UsageError(
            f"the detector of {category!r} is an ensemble ({spec.backbone}), and anomalib's "
            f"checkpoints hold one backbone; export its vectors with {option('to', 'parquet')} or "
            f"{option('to', 'numpy')}"
        )
    preprocessing = Preprocessing.from_dict(spec.preprocessing)
    if preprocessing.resize != "stretch" or preprocessing.local_contrast is not None:
        raise UsageError(
            f"anomalib cannot prepare images as the detector of {category!r} does; train one that "
            f"it can follow with: {option('resize', 'stretch')} {option('local_contrast', 0)}"
        )
    if is_pooled(spec):
        raise UsageError(
            f"the detector of {category!r} makes patch embeddings as patchcore-inspection does, "
            f"and anomalib cannot; export its vectors with {option('to', 'parquet')} or "
            f"{option('to', 'numpy')}"
        )
    backbone = find_backbone(spec.backbone)
    given: Path | StateDict | None = weights
    if weights is not None and weights.suffix == ".ckpt":
        given = StateDict(f"checkpoint {weights.name}", read_checkpoint(weights).weights)
    embedder = patchcore.build_embedder(backbone, spec.layers, preprocessing, given)
    if embedder.spec.fingerprint != spec.fingerprint:
        raise WeightsError(
            f"these are not the weights that {category} was trained with, which came from "
            f"{spec.weights_source}; name that file with {option('weights')}"
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
    return CheckpointReport(
        category,
        detector.id,
        path,
        len(vectors),
        vectors.shape[1],
        "as stored" if as_stored else "read again",
        threshold,
    )


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
        scale=images[0].gray_scale,
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
