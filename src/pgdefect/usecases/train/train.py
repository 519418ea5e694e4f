"""Train a PatchCore detector for a category: extract, select, calibrate, export."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from sqlalchemy import Connection

from pgdefect.core.config import Settings
from pgdefect.core.detector_kinds import PATCHCORE
from pgdefect.core.errors import TooFewImages
from pgdefect.core.progress import Progress, silent
from pgdefect.core.signal_stack import widen_signal_stack
from pgdefect.core.types import (
    DefectViewArtifact,
    Float32,
    StoredImage,
)
from pgdefect.core.wording import blank, command
from pgdefect.db.access.roles import require_owner
from pgdefect.db.connection.engine import Database
from pgdefect.db.records.catalog import category_id as find_category
from pgdefect.db.records.defects import ensure_defect_space, load_defect_view
from pgdefect.db.records.extractors import (
    find_extractor,
    images_without_embedding,
    load_extractor,
    store_extractor,
    store_image_embeddings,
)
from pgdefect.db.records.outliers import (
    Outlier,
    outliers_of,
    reviewed_as_normal,
    stored_outliers,
)
from pgdefect.db.records.patchcore import bank_figures, find_run, store_detector
from pgdefect.db.search.queries import images_of
from pgdefect.usecases.common.duplicate_limit import measure_duplicate_limit
from pgdefect.usecases.common.embedding import by_input_size, embed_images
from pgdefect.usecases.inspect.embed import embed_first_defects
from pgdefect.usecases.train.bank import (
    build_bank,
    calibration_for,
    images_to_score,
    learn_defect_space,
    score_others,
)
from pgdefect.usecases.train.extraction import Extracted, extract_patches, spool_key
from pgdefect.usecases.train.image_checks import image_notes
from pgdefect.usecases.train.options import TrainOptions
from pgdefect.usecases.train.training_run import TrainingRun
from pgdefect.vision.defects.deep_layers import export_defect_view
from pgdefect.vision.images.preprocess import Preprocessing
from pgdefect.vision.networks.backbone import find_backbones, in_network_order
from pgdefect.vision.networks.extractor import Extractor
from pgdefect.vision.networks.torch_tools import check_device, library_versions
from pgdefect.vision.patchcore import patchcore
from pgdefect.vision.patchcore.ensemble import build_ensemble
from pgdefect.vision.patchcore.patch_spool import PatchSpool

MIN_IMAGES = 5


@dataclass(frozen=True)
class TrainReport:
    """What a training made; seconds by stage.

    training_images were learned from. held_out_images, some of them, set the threshold: each was
    compared with the bank without the vectors of its own part.

    Attributes:
        resumed_images: of extracted_images, those reused from an interrupted training.
        already_stored: it had stored the detector, too.
        rule: what the threshold was made from, and promises.
        notes: lines about images that make defects hard to find.
        outliers: normal images that scored far outside the rest, worst first, which the threshold
            is chosen without; with them it would be threshold_with_outliers.
    """

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
    extracted_images: int = 0
    resumed_images: int = 0
    already_stored: bool = False
    rule: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    outliers: tuple[Outlier, ...] = ()
    threshold_with_outliers: float | None = None

    @property
    def made(self) -> dict[str, int]:
        """What sums up the detector, by heading."""
        return {"bank vectors": self.bank_vectors, "dim": self.embedding_dim}


def train(
    database: Database,
    settings: Settings,
    category: str,
    options: TrainOptions,
    *,
    run: TrainingRun | None = None,
    progress: Progress = silent,
) -> TrainReport:
    """Learn what is normal for a category from its normal training images.

    All go into the bank. For the threshold some (`holdout`, by group) are scored against the
    vectors of other parts. The new detector replaces the active one in the
    transaction that stores it; interrupted at any moment before, nothing changes. Killed, or cut
    off from the database, it resumes when it is called again: images are not extracted twice,
    and with the same `run` a detector that was stored is not made again.

    Raises:
        UnknownCategory, TooFewImages, UsageError, WeightsError, MissingExtra;
        PermissionDenied: this login may not make the bank's table;
        Busy: the category is being trained already.
    """
    with database.connect() as connection:
        category_id = find_category(connection, category)
    require_owner(database, "training")
    with database.lock(f"training of {category}"):
        arguments = (database, settings, category, category_id, options, run, progress)
        report = _train(*arguments)
        if options.leave_out_outliers and any(image.in_bank for image in report.outliers):
            report = _train(*arguments)  # without those that it has just named
        return report


@dataclass(frozen=True)
class _Task:
    """What the stages of one training share.

    Attributes:
        everything: the category's images.
        normal: those that are learned from.
        left_out: ids of outliers, which are only scored.
    """

    database: Database
    settings: Settings
    category: str
    category_id: int
    options: TrainOptions
    progress: Progress
    everything: Sequence[StoredImage]
    normal: Sequence[StoredImage]
    left_out: set[int]
    extractor: Extractor
    extractor_id: int
    embedder: patchcore.PatchEmbedder
    clock: Clock

    @property
    def images(self) -> list[StoredImage]:
        """What is extracted: outliers behind the others, so that the bank is made from the
        beginning of the spool.
        """
        last = [image for image in self.everything if image.id in self.left_out]
        preprocessing = self.extractor.preprocessing
        return by_input_size(self.normal, preprocessing) + by_input_size(last, preprocessing)


def _train(
    database: Database,
    settings: Settings,
    category: str,
    category_id: int,
    options: TrainOptions,
    run: TrainingRun | None,
    progress: Progress,
) -> TrainReport:
    task = _prepared(database, settings, category, category_id, options, progress)
    images, clock = task.images, task.clock
    key = spool_key(database, category, task.extractor, images, options)
    with PatchSpool(settings.cache_dir, options.precision, key) as spool:
        extracted = Extracted()
        recorded = options.recorded()
        if task.left_out:
            recorded["left_out_images"] = sorted(task.left_out)
        detector_id = None
        if run and (token := run.token(category, key.content)):
            detector_id = find_run(database, category_id, recorded | {"run": token})
        already_stored = detector_id is not None
        if detector_id is None:
            if run and (token := run.begin(category, key.content)):
                recorded["run"] = token
            with clock("extract"):
                extracted = extract_patches(
                    task.embedder, task.extractor, images, spool, options, progress
                )
            detector_id = _learn(task, spool, images, extracted, recorded)
        with clock("embed"):
            failed = _embed_rest(task, detector_id, extracted)
    return _report(task, detector_id, extracted, failed, already_stored)


def _prepared(
    database: Database,
    settings: Settings,
    category: str,
    category_id: int,
    options: TrainOptions,
    progress: Progress,
) -> _Task:
    """The images and the extractor of a training."""
    clock = Clock()
    everything = images_of(database, category)
    normal = learnable(category, everything)
    left_out = _left_out(database, category_id, normal, options)
    normal = [image for image in normal if image.id not in left_out]
    images_to_score(normal, options.holdout, options.seed)  # rather than after hours of extraction
    with clock("extractor"):
        extractor, extractor_id, embedder = _extractor(
            database, settings, options, normal, progress
        )
    return _Task(
        database,
        settings,
        category,
        category_id,
        options,
        progress,
        everything,
        normal,
        left_out,
        extractor,
        extractor_id,
        embedder,
        clock,
    )


def _learn(
    task: _Task,
    spool: PatchSpool,
    images: Sequence[StoredImage],
    extracted: Extracted,
    recorded: dict[str, Any],
) -> int:
    """Make bank, threshold and defect space of the extracted patches, and store the detector.

    Returns its id. Raises TooFewImages.
    """
    options, clock, progress = task.options, task.clock, task.progress
    scorable = [image for image in images if image.id in extracted.means]
    readable = _readable(task, scorable, extracted)
    scored = images_to_score(readable, options.holdout, options.seed) | task.left_out
    with clock("coreset"):
        ids = [image.id for image in readable]
        scales = task.embedder.scales(options.chosen_layer_weights)
        bank = build_bank(spool, ids, options, progress, scales=scales)
    with clock("threshold"):
        with task.database.connect() as connection:
            kept = reviewed_as_normal(connection, [*extracted.means])
        threshold, scores = score_others(
            bank, spool, scorable, scored, options, progress, kept=kept, left_out=task.left_out
        )
        calibration = calibration_for(bank, spool, readable, options.seed)
    with clock("defects"):
        view = _defect_view(task.database, task.settings, task.extractor_id, options)
        space = learn_defect_space(bank, spool, readable, view)
        ensure_defect_space(task.database, task.extractor_id, space, view)
    with clock("export"):
        widen_signal_stack()
        task.database.transact(partial(_store_means, task.extractor_id, extracted.means))
        return store_detector(
            task.database,
            category_id=task.category_id,
            extractor_id=task.extractor_id,
            bank=bank,
            threshold=threshold,
            holdout_scores=scores,
            defect_space=space,
            calibration=calibration,
            settings=recorded,
            metrics={},
            library_versions=library_versions(),
            progress=progress,
        )


def _readable(
    task: _Task, scorable: Sequence[StoredImage], extracted: Extracted
) -> list[StoredImage]:
    """Images that are learned from, of those extracted. Raises TooFewImages."""
    readable = [image for image in scorable if image.id not in task.left_out]
    if len(readable) < MIN_IMAGES:
        raise TooFewImages(
            f"only {len(readable)} of {len(task.normal)} training images of {task.category!r} can "
            f"be read, and {MIN_IMAGES} are needed; first: {extracted.failed[0][1]}"
        )
    return readable


def _embed_rest(task: _Task, detector_id: int, extracted: Extracted) -> list[tuple[str, str]]:
    """Embed what was not extracted, and defects. Returns path and reason of all failures."""
    unread = dict(extracted.failed)
    others = [i for i in task.everything if i.id not in extracted.means and i.path not in unread]
    failed = embed_images(task.database, task.extractor, task.extractor_id, others, task.progress)
    failed += embed_first_defects(task.database, task.settings, task.category, task.progress)
    measure_duplicate_limit(
        task.database, task.extractor, detector_id, task.extractor_id, task.everything
    )
    return extracted.failed + failed


def _report(
    task: _Task,
    detector_id: int,
    extracted: Extracted,
    failed: Sequence[tuple[str, str]],
    already_stored: bool,
) -> TrainReport:
    figures = bank_figures(task.database, detector_id)
    with task.database.connect() as connection:
        outliers = outliers_of(connection, detector_id)
    look = task.extractor
    notes = image_notes(task.normal, task.everything, look.preprocessing, look.grid_of)
    return TrainReport(
        task.category,
        detector_id,
        figures.num_images,
        figures.held_out_images,
        figures.num_vectors,
        figures.embedding_dim,
        figures.covering_radius,
        figures.threshold,
        task.extractor_id,
        task.clock.seconds,
        tuple(dict(failed).items()),
        len(task.images),
        extracted.resumed,
        already_stored,
        figures.rule,
        tuple(notes),
        outliers.images,
        outliers.threshold_with_outliers,
    )


def _left_out(
    database: Database, category_id: int, normal: Sequence[StoredImage], options: TrainOptions
) -> set[int]:
    """Ids of images that a training without outliers does not learn from: those that the active
    detector's training named, and nobody has called normal since.
    """
    if not options.leave_out_outliers:
        return set()
    with database.connect() as connection:
        named = stored_outliers(connection, category_id, PATCHCORE)
    return named & {image.id for image in normal}


def _store_means(extractor_id: int, means: dict[int, Float32], connection: Connection) -> None:
    if missing := images_without_embedding(connection, extractor_id, list(means)):
        embeddings = np.stack([means[image_id] for image_id in missing])
        store_image_embeddings(connection, extractor_id, missing, embeddings)


def _defect_view(
    database: Database,
    settings: Settings,
    extractor_id: int,
    options: TrainOptions,
) -> DefectViewArtifact | None:
    """The extractor's second look, or a new one; of an ensemble the first backbone's."""
    with database.connect() as connection:
        known = load_defect_view(connection, extractor_id, settings.cache_dir)
    if known is not None:
        return known
    backbone = find_backbones(options.backbone)[0]
    return export_defect_view(backbone, options.weights, settings.cache_dir)


def learnable(category: str, images: Sequence[StoredImage]) -> list[StoredImage]:
    """The normal training images among a category's. Raises TooFewImages."""
    normal = [image for image in images if image.split == "train" and image.known_label == "normal"]
    if len(normal) < MIN_IMAGES:
        raise TooFewImages(
            f"category {category!r} has {len(normal)} normal training images and needs at least "
            f"{MIN_IMAGES}. Add some with: {command('ingest', blank('PATH'), category=category)}"
        )
    return normal


def _extractor(
    database: Database,
    settings: Settings,
    options: TrainOptions,
    images: Sequence[StoredImage],
    progress: Progress,
) -> tuple[Extractor, int, patchcore.PatchEmbedder]:
    progress("extractor", 0, 0)
    check_device(options.device)
    backbone, *others = find_backbones(options.backbone)
    preprocessing = Preprocessing(
        image_size=options.image_size,
        center_crop=options.center_crop,
        mean=backbone.mean,
        std=backbone.std,
        resize=options.resize,
        local_contrast=options.local_contrast,
        least_side=options.least_side((image.height, image.width) for image in images),
    )
    if others:
        embedder = build_ensemble([backbone, *others], preprocessing)
    else:
        embedder = patchcore.build_embedder(
            backbone,
            in_network_order(backbone, options.layers or backbone.layers),
            preprocessing,
            options.weights,
        )
    # What this refuses is refused before anything is stored.
    embedder.scales(options.chosen_layer_weights)
    extractor_id = find_extractor(database, embedder.spec.fingerprint)
    if extractor_id is None:
        extractor_id = store_extractor(database, embedder.export(settings.cache_dir))
    extractor = Extractor(load_extractor(database, extractor_id, settings.cache_dir))
    widen_signal_stack()  # the libraries are loaded: Ctrl-C from here on is an error as any other
    progress("extractor", 1, 1)
    return extractor, extractor_id, embedder


class Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] = time.perf_counter() - start
