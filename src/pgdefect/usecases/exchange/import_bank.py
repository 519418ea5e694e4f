"""Memory banks of other programs, made detectors of this one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pgdefect.core import thresholds
from pgdefect.core.config import Settings
from pgdefect.core.detector_kinds import PATCHCORE
from pgdefect.core.distance import L2, index_expression
from pgdefect.core.errors import TooFewImages, UsageError, WeightsError
from pgdefect.core.outliers import find_outliers, threshold_without
from pgdefect.core.progress import Progress, silent
from pgdefect.core.thresholds import DEFAULT_FALSE_REJECT_RATE
from pgdefect.core.types import (
    UNKNOWN_IMAGE,
    EmbeddingTransform,
    Float32,
    MemoryBank,
    StoredImage,
    Threshold,
)
from pgdefect.core.wording import blank, command, option
from pgdefect.db.access.roles import require_owner
from pgdefect.db.connection.engine import Database
from pgdefect.db.records.catalog import category_id as find_category
from pgdefect.db.records.detectors import active_detector
from pgdefect.db.records.extractors import find_extractor, load_extractor, store_extractor
from pgdefect.db.records.outliers import reviewed_as_normal
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
    part_name,
)
from pgdefect.usecases.train.train import MIN_IMAGES
from pgdefect.vision.networks.extractor import BATCH_SIZE, Extractor
from pgdefect.vision.networks.torch_tools import library_versions

SAME_PATCH = 1e-4
"""A patch this near to a bank vector, as a share of the bank's norms, is that vector; a bank
in half precision is off by more."""
SAME_PATCH_RESIZED = 0.25
"""So is one this near as a share of the image's median patch. Other programs resize in floating
point, and not in 8 bits as here: of 16 photographs resized from 200 to 256 pixels the nearest patch
was 0.06 to 0.10 of the median away from the bank made from them, and of new ones 0.42 to 0.70."""


LARGEST_VALUE = 1e9
"""Of a bank's vectors; features of networks lie below 1e3, squares of 1e19 overflow."""


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

    Args:
        path: a checkpoint of anomalib's Patchcore, a tensor that ``torch.save`` wrote, or a folder
            of patchcore-inspection's (`bank_files`). The bank is stored as it is: Euclidean, not
            transformed, in single precision. Where its vectors came from is not known. The
            threshold, a Euclidean distance, is the one given, or comes from the category's normal
            training images, leaving out those that the bank was made from (`_learned_from`).

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
        extractor, extractor_id = _extractor(database, settings, found, path, progress)
        bank = _bank(found)
        held_out = _score(
            BankSearch(bank.embeddings, L2, bank.num_neighbors),
            extractor,
            _to_score(everything, threshold),
            max(SAME_PATCH, 2 * found.rounding),
            progress,
        )
        detector_id = store_detector(
            database,
            category_id=category_id,
            extractor_id=extractor_id,
            bank=bank,
            threshold=_threshold(database, held_out, threshold, false_reject_rate, category),
            holdout_scores=held_out.scores,
            calibration=held_out.calibration(),
            settings={
                "imported": path.name,
                "format": found.format,
                "weights": found.embedder.spec.weights_source,
            },
            metrics={},
            library_versions=library_versions(),
            progress=progress,
        )
        failed = embed_images(database, extractor, extractor_id, everything, progress)
        in_force = active_detector(database, category, PATCHCORE).threshold
    count, dim = bank.embeddings.shape
    made = (detector_id, extractor_id, count, dim, bank.num_neighbors)
    learned = (len(held_out.scores), held_out.learned)
    return ImportReport(category, found.format, *made, in_force, *learned, tuple(failed))


def _extractor(
    database: Database, settings: Settings, found: BankFile, path: Path, progress: Progress
) -> tuple[Extractor, int]:
    """The extractor that a bank was made with, stored, and its id.

    Raises:
        WeightsError: where the bank's vectors cannot be its patches.
    """
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
    require_plausible(found.memory_bank, path)
    return extractor, extractor_id


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
    normal = [image for image in images if image.split == "train" and image.known_label == "normal"]
    if threshold is None:
        return normal
    return [*normal, *(image for image in images if image not in normal)][: 4 * MIN_IMAGES]


def require_plausible(vectors: Float32, path: Path) -> None:
    """Refuse vectors by which every image would be judged alike.

    Args:
        vectors: the memory bank of the file, `(num_vectors, embedding_dim)`.
        path: the file, for the message.

    Raises:
        WeightsError: they are not finite, too large to have a distance in single precision, mostly
            zero, or all the same.
    """
    largest = float(np.abs(vectors).max(initial=0.0))
    if not np.isfinite(largest) or largest > LARGEST_VALUE:
        fault = f"holds values up to {largest:g}, more than the {LARGEST_VALUE:g} that are taken"
    elif (zeros := int((~vectors.any(axis=1)).sum())) > len(vectors) / 2:
        fault = f"holds {zeros:,} zero vectors of {len(vectors):,}"
    elif len(vectors) > 1 and np.array_equal(vectors.min(axis=0), vectors.max(axis=0)):
        fault = f"holds {len(vectors):,} vectors that are all the same"
    else:
        return
    raise WeightsError(
        f"the memory bank of {path} {fault}: no image could be judged by it, and the active "
        "detector stays. Export the bank again"
    )


class _Scored(NamedTuple):
    """An image compared with the bank; own_vectors: positions that a patch of it is the same as.

    Attributes:
        window: of some of the images.
    """

    image: StoredImage
    raw_score: float
    own_vectors: set[int]
    window: CalibrationWindow | None


class _HeldOut:
    """What scoring the images gave: those the bank was not made from, and patches of all."""

    def __init__(self, scored: Sequence[_Scored]) -> None:
        self.parts = {one.image.id: part_name(one.image) for one in scored}
        learned = _learned_from(scored, self.parts)
        self.learned = sum(learned)
        self.scores: dict[int, float] = {
            one.image.id: one.raw_score
            for one, known in zip(scored, learned, strict=True)
            if not known and one.image.split == "train" and one.image.known_label == "normal"
        }
        """Raw score by image id, of normal training images only."""
        self._windows = [
            [
                one.window
                for one, known in zip(scored, learned, strict=True)
                if one.window is not None and known is wanted
            ]
            for wanted in (False, True)
        ]

    def calibration(self) -> Calibration:
        """A few images the bank was not made from, where there are any: they are harder to find."""
        return calibration_of((self._windows[0] or self._windows[1])[:CALIBRATION_IMAGES])


def _learned_from(scored: Sequence[_Scored], parts: Mapping[int, str]) -> list[bool]:
    """Which of the images the bank was made from.

    An image of the bank has a patch that is a bank vector, but for how the image was resized. A
    vector that images of more than half of the parts have a patch of (blank ground is the same
    everywhere) says nothing.
    """
    having: dict[int, set[str]] = {}
    for one in scored:
        for vector in one.own_vectors:
            having.setdefault(vector, set()).add(parts[one.image.id])
    most = max(1, len(set(parts.values())) // 2)
    return [any(len(having[vector]) <= most for vector in one.own_vectors) for one in scored]


def _score(
    search: BankSearch,
    extractor: Extractor,
    images: Sequence[StoredImage],
    same_patch: float,
    progress: Progress,
) -> _HeldOut:
    scored: list[_Scored] = []
    failed: list[tuple[str, str]] = []
    rng = np.random.default_rng(0)
    with_window = set(rng.permutation(len(images))[: 4 * CALIBRATION_IMAGES].tolist())
    norm = float(np.sqrt(np.einsum("nd,nd->n", search.vectors, search.vectors).mean()))

    for batch in image_batches(images, extractor.preprocessing, BATCH_SIZE, failed):
        for index, patches in zip(batch.indices, extractor(batch.inputs), strict=True):
            vectors = patches.reshape(-1, patches.shape[-1])
            scores = score_image(search, vectors, patches.shape[:2])
            assert scores.positions is not None
            same = max(same_patch * norm, SAME_PATCH_RESIZED * float(np.median(scores.distances)))
            scored.append(
                _Scored(
                    images[index],
                    scores.raw_score,
                    set(scores.positions[scores.distances <= same].tolist()),
                    calibration_window(rng, vectors, scores.distances)
                    if index in with_window or not any(one.window for one in scored)
                    else None,
                )
            )
            progress("threshold", len(scored) + len(failed), len(images))
    if not scored:
        raise TooFewImages(
            "no image of the category can be read, and the index is calibrated on some"
            + (f"; first: {failed[0][1]}" if failed else "; add some with: pgdefect ingest")
        )
    return _HeldOut(scored)


def _threshold(
    database: Database,
    held_out: _HeldOut,
    given: float | None,
    false_reject_rate: float,
    category: str,
) -> Threshold:
    scores = held_out.scores
    if given is None:
        if len(scores) < MIN_IMAGES:
            raise TooFewImages(
                f"category {category!r} has {len(scores)} normal training images that the bank was "
                f"not made from ({held_out.learned} it was), and a threshold needs {MIN_IMAGES}. "
                f"Add some with {command('ingest', blank('PATH'), category=category)}, or give "
                f"{option('threshold')}"
            )
        with database.connect() as connection:
            kept = reviewed_as_normal(connection, [*scores])
        outliers = find_outliers(scores, held_out.parts) - kept
        return threshold_without(outliers, scores, false_reject_rate, held_out.parts)
    return thresholds.given(given, list(scores.values()))
