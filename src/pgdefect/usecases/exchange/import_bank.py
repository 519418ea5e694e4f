"""Memory banks of other programs, made detectors of this one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pgdefect.core import thresholds
from pgdefect.core.config import Settings
from pgdefect.core.distance import L2, index_expression
from pgdefect.core.errors import TooFewImages, UsageError, WeightsError
from pgdefect.core.progress import Progress, silent
from pgdefect.core.thresholds import DEFAULT_FALSE_REJECT_RATE
from pgdefect.core.types import (
    UNKNOWN_IMAGE,
    EmbeddingTransform,
    Float32,
    MemoryBank,
    PatchScores,
    StoredImage,
    Threshold,
)
from pgdefect.core.wording import blank, command, option
from pgdefect.db.access.roles import require_owner
from pgdefect.db.connection.engine import Database
from pgdefect.db.records.catalog import category_id as find_category
from pgdefect.db.records.detectors import active_detector
from pgdefect.db.records.extractors import find_extractor, load_extractor, store_extractor
from pgdefect.db.records.patchcore import Calibration, store_detector
from pgdefect.db.search.queries import images_of
from pgdefect.usecases.common.embedding import embed_images
from pgdefect.usecases.common.patch_search import BankSearch, score_image
from pgdefect.usecases.common.stored_files import image_batches
from pgdefect.usecases.exchange.bank_files import BankFile, BankOptions, open_bank
from pgdefect.usecases.train.bank import (
    CALIBRATION_IMAGES,
    CalibrationWindow,
    calibration_of,
    calibration_window,
)
from pgdefect.usecases.train.train import MIN_IMAGES
from pgdefect.vision.networks.extractor import BATCH_SIZE, Extractor
from pgdefect.vision.networks.torch_tools import library_versions

SAME_PATCH = 1e-4
"""A patch this near to a bank vector, as a share of the bank's norms, is that vector; a bank
in half precision is off by more."""


@dataclass(frozen=True)
class ImportReport:
    """What an import made. learned_images: stored images that the bank was made from."""

    category: str
    format: str
    detector_id: int
    extractor_id: int
    bank_vectors: int
    embedding_dim: int
    num_neighbors: int
    threshold: float
    held_out_images: int
    learned_images: int
    failed: tuple[tuple[str, str], ...]


def import_bank(
    database: Database,
    settings: Settings,
    path: Path,
    category: str,
    options: BankOptions | None = None,
    *,
    threshold: float | None = None,
    false_reject_rate: float = DEFAULT_FALSE_REJECT_RATE,
    progress: Progress = silent,
) -> ImportReport:
    """Make a bank from a file the active detector of a category.

    path: a checkpoint of anomalib's Patchcore, a tensor that ``torch.save`` wrote, or a folder
    of patchcore-inspection's (`bank_files`). The bank is stored as it is:
    Euclidean, not transformed, in single precision. Where its vectors came from is not known.
    The threshold, a Euclidean distance, is the one given, or comes from the category's normal
    training images, leaving out those that the bank was made from: they have a patch that is
    a bank vector.

    Raises:
        UnknownCategory, WeightsError, UsageError, MissingExtra;
        TooFewImages: too few other normal images, and no threshold given;
        Busy: the category is being trained.
    """
    if threshold is not None and not 0.0 < threshold < float("inf"):
        raise UsageError(f"{option('threshold')} must be a number above 0, not {threshold}")
    with database.connect() as connection:
        category_id = find_category(connection, category)
    require_owner(database, "importing a bank")
    with database.lock(f"training of {category}"):
        everything = images_of(database, category)
        sizes = {(image.height, image.width) for image in everything}
        found = open_bank(path, options or BankOptions(), sizes)
        progress("extractor", 0, 1)
        spec = found.embedder.spec
        extractor_id = find_extractor(database, spec.fingerprint)
        if extractor_id is None:
            extractor_id = store_extractor(database, found.embedder.export(settings.cache_dir))
        extractor = Extractor(load_extractor(database, extractor_id, settings.cache_dir))
        progress("extractor", 1, 1)
        if found.memory_bank.shape[1] != extractor.artifact.embedding_dim:
            raise WeightsError(
                f"the memory bank of {path} has {found.memory_bank.shape[1]} dimensions, and "
                f"{spec.backbone} gives {extractor.artifact.embedding_dim} with the layers "
                f"{', '.join(spec.layers)}"
            )
        bank = _bank(found)
        failed: list[tuple[str, str]] = []
        held_out = _score(
            BankSearch(bank.embeddings, L2, bank.num_neighbors),
            extractor,
            _to_score(everything, threshold),
            max(SAME_PATCH, 2 * found.rounding),
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
            settings={
                "imported": path.name,
                "format": found.format,
                "weights": spec.weights_source,
            },
            metrics={},
            library_versions=library_versions(),
            progress=progress,
        )
        failed = embed_images(database, extractor, extractor_id, everything, progress)
        detector = active_detector(database, category, "patchcore")
    return ImportReport(
        category,
        found.format,
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


def _bank(found: BankFile) -> MemoryBank:
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
        self.scored = 0
        self.windows: dict[bool, list[CalibrationWindow]] = {True: [], False: []}
        """A few of images the bank was made from, and a few of others."""

    def add_window(
        self, rng: np.random.Generator, learned: bool, vectors: Float32, scores: PatchScores
    ) -> None:
        """Every image of its kind has the same chance of being among the few."""
        kept, seen = self.windows[learned], self.learned if learned else self.scored - self.learned
        place = len(kept) if seen <= CALIBRATION_IMAGES else int(rng.integers(seen))
        if place < CALIBRATION_IMAGES:
            kept[place : place + 1] = [calibration_window(rng, vectors, scores.distances)]

    def calibration(self) -> Calibration:
        """Of images the bank was not made from, where there are any: theirs are harder to find."""
        return calibration_of(self.windows[False] or self.windows[True])


def _score(
    search: BankSearch,
    extractor: Extractor,
    images: Sequence[StoredImage],
    same_patch: float,
    failed: list[tuple[str, str]],
    progress: Progress,
) -> _HeldOut:
    result = _HeldOut()
    rng = np.random.default_rng(0)
    norm = float(np.sqrt(np.einsum("nd,nd->n", search.vectors, search.vectors).mean()))

    for batch in image_batches(images, extractor.preprocessing, BATCH_SIZE, failed):
        for index, patches in zip(batch.indices, extractor(batch.inputs), strict=True):
            image = images[index]
            vectors = patches.reshape(-1, patches.shape[-1])
            scores = score_image(search, vectors, patches.shape[:2])
            learned = float(scores.distances.min()) <= same_patch * norm
            result.scored += 1
            if learned:
                result.learned += 1
            elif image.split == "train" and image.label == "normal":
                result.scores[image.id] = scores.raw_score
            result.add_window(rng, learned, vectors, scores)
            progress("threshold", result.scored + len(failed), len(images))
    if not result.scored:
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
                f"Add some with {command('ingest', blank('PATH'), category=category)}, or give "
                f"{option('threshold')}"
            )
        return thresholds.false_reject_rate(scores, false_reject_rate)
    return thresholds.given(given, scores)
