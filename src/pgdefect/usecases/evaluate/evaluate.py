"""Evaluate a category's active detector on labeled images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pgdefect.core.config import Settings
from pgdefect.core.detector_kinds import check_kind
from pgdefect.core.errors import Conflict, DatasetError, UsageError
from pgdefect.core.json_shapes import failed_json
from pgdefect.core.progress import Progress, silent
from pgdefect.core.types import Detector, DetectorKind, StoredImage
from pgdefect.core.wording import blank, command
from pgdefect.core.words import SPLITS, check_word
from pgdefect.db.connection.engine import Database
from pgdefect.db.records.detectors import active_detector
from pgdefect.db.records.evaluations import (
    HEADLINES,
    StoredScores,
    images_learned,
    store_evaluation,
    stored_scores,
)
from pgdefect.db.records.extractors import load_extractor
from pgdefect.db.search.queries import image_embeddings_of, images_of, stored_images
from pgdefect.evaluation import (
    FPR_LIMIT,
)
from pgdefect.usecases.common.parts import part_numbers
from pgdefect.usecases.common.patch_search import SearchKind
from pgdefect.usecases.common.stored_files import changed
from pgdefect.usecases.evaluate.figures import (
    Interval,
    Judgement,
    Replicates,
    TypeFigures,
    image_figures,
    intervals_of,
    pixel_figures,
    type_figures,
)
from pgdefect.usecases.evaluate.split_leaks import Leak, LookAlike, find_leaks, find_look_alikes
from pgdefect.usecases.inspect.inspect import inspect
from pgdefect.vision.images.preprocess import Preprocessing


@dataclass(frozen=True)
class EvaluateOptions:
    """What is evaluated, and how.

    Attributes:
        again: inspect also what this detector has judged before under its present threshold.
        bootstrap: how many resamples make the intervals; 0 makes none.
    """

    split: str = "test"
    kind: DetectorKind | None = None
    search: SearchKind = "exact"
    again: bool = False
    drop_leaks: bool = False
    bootstrap: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        check_word("split", self.split, SPLITS)
        check_kind(self.kind)
        check_word("search", self.search, ("exact", "hnsw"))
        if self.bootstrap < 0:
            raise UsageError(f"the number of resamples must be 0 or more, not {self.bootstrap}")
        if self.seed < 0:
            raise UsageError(f"the seed must be 0 or more, not {self.seed}")


@dataclass(frozen=True)
class Evaluation:
    """What was measured. `figures` are by name, None where they cannot be computed; a note
    then says why. `replicates` hold the bootstrap's, for means over categories.
    """

    category: str
    evaluation_id: int
    detector: Detector
    split: str
    figures: dict[str, float | None]
    intervals: dict[str, Interval]
    defect_types: tuple[TypeFigures, ...]
    judgements: tuple[Judgement, ...] = field(repr=False)
    preprocessing: Preprocessing
    leaks: tuple[Leak, ...]
    look_alikes: tuple[LookAlike, ...]
    dropped_images: int
    notes: tuple[str, ...]
    failed: tuple[tuple[str, str], ...]
    settings: dict[str, Any]
    replicates: Replicates = field(repr=False)

    @property
    def threshold(self) -> float:
        return self.detector.threshold

    @property
    def normal_images(self) -> int:
        return sum(not judgement.anomalous for judgement in self.judgements)

    @property
    def anomalous_images(self) -> int:
        return len(self.judgements) - self.normal_images

    def misses(self) -> tuple[list[Judgement], list[Judgement]]:
        """False rejects and escapes under the threshold, the worst first."""
        normal = [j for j in self.judgements if not j.anomalous]
        anomalous = [j for j in self.judgements if j.anomalous]
        rejects = [j for j in normal if j.scores.raw_score > self.threshold]
        escapes = [j for j in anomalous if j.scores.raw_score <= self.threshold]
        return (
            sorted(rejects, key=lambda j: -j.scores.raw_score),
            sorted(escapes, key=lambda j: j.scores.raw_score),
        )

    def to_json(self) -> dict[str, Any]:
        """Figures, intervals and leaks as plain values."""
        return {
            "category": self.category,
            "evaluation_id": self.evaluation_id,
            "detector_id": self.detector.id,
            "kind": self.detector.kind,
            "version": self.detector.version,
            "split": self.split,
            "threshold": self.threshold,
            "normal_images": self.normal_images,
            "anomalous_images": self.anomalous_images,
            **self.figures,
            "intervals": self.intervals,
            "defect_types": self.defect_types,
            "leaks": self.leaks,
            "look_alikes": self.look_alikes,
            "dropped_images": self.dropped_images,
            "notes": self.notes,
            "failed": failed_json(self.failed),
        }


def evaluate(
    database: Database,
    settings: Settings,
    category: str,
    options: EvaluateOptions = EvaluateOptions(),
    *,
    progress: Progress = silent,
) -> Evaluation:
    """Measure the active detector on the labeled images of a split, and store the result.

    Inspections that are there are used again, unless they are of the kind whose maps are
    coarse; what is missing is inspected and stored. Files that have gone or changed since they
    were ingested are left out and named in `failed`. An evaluation of all test images is kept
    with the detector's figures.

    Raises:
        UnknownCategory, NoActiveDetector, MissingExtra;
        DatasetError: the split has no normal or no anomalous images.
    """
    detector = active_detector(database, category, options.kind)
    chosen = _choose(database, detector, options)
    notes: list[str] = []
    failed: list[tuple[str, str]] = []
    usable = _unchanged(chosen.kept, failed)
    scores, reused = _scores(database, settings, detector, usable, options, failed, progress)
    judgements = tuple(Judgement(image, scores[image.id]) for image in usable if image.id in scores)
    _require_both(category, options.split, [j.image for j in judgements], failed=failed)
    artifact = load_extractor(database, detector.extractor_id, settings.cache_dir)
    preprocessing = Preprocessing.from_dict(artifact.spec.preprocessing)
    look_alikes = _look_alikes(database, detector, chosen)
    measured = _measure(
        judgements, preprocessing, detector.threshold, options, notes, failed, progress
    )
    recorded = {
        **asdict(options),
        "aupro_fpr_limit": FPR_LIMIT,
        "pixel_error_bound": measured.pixel_error,
        "groups": len({*part_numbers([j.image for j in judgements]).tolist()}),
        "reused_inspections": reused,
        "leaks": [asdict(leak) for leak in chosen.leaks],
        "look_alikes": [asdict(pair) for pair in look_alikes],
        "dropped_images": chosen.dropped,
        "failed": [list(item) for item in failed],
        "notes": notes,
    }
    evaluation_id = store_evaluation(
        database,
        detector.id,
        threshold=detector.threshold,
        split=options.split,
        normal_images=sum(not j.anomalous for j in judgements),
        anomalous_images=sum(j.anomalous for j in judgements),
        metrics={
            **measured.figures,
            "leaking_images": sum(image.id in chosen.leaking for image in chosen.kept),
            "intervals": measured.intervals,
            "defect_types": [asdict(item) for item in measured.types],
        },
        settings=recorded,
        headline=options.split == "test" and not failed,
    )
    return Evaluation(
        category=category,
        evaluation_id=evaluation_id,
        detector=detector,
        split=options.split,
        figures=measured.figures,
        intervals=measured.intervals,
        defect_types=measured.types,
        judgements=judgements,
        preprocessing=preprocessing,
        leaks=chosen.leaks,
        look_alikes=look_alikes,
        dropped_images=chosen.dropped,
        notes=tuple(notes),
        failed=tuple(failed),
        settings=recorded,
        replicates=measured.replicates,
    )


@dataclass(frozen=True)
class _Chosen:
    """The labeled images to evaluate on, and what of them was learned from.

    Attributes:
        leaking: ids of images of the split whose part was learned from.
        dropped: how many of them were left out.
    """

    kept: list[StoredImage]
    learned: list[StoredImage]
    leaks: tuple[Leak, ...]
    leaking: set[int]
    dropped: int


def _choose(database: Database, detector: Detector, options: EvaluateOptions) -> _Chosen:
    category, split = detector.category, options.split
    labeled = [i for i in images_of(database, category, split=split) if i.known_label]
    training, calibration = _learned(database, detector)
    leaks = find_leaks(labeled, calibration, training, split)
    leaking = {id_ for leak in leaks if leak.sides[0] == split for id_ in leak.image_ids}
    kept = [i for i in labeled if not (options.drop_leaks and i.id in leaking)]
    dropped = len(labeled) - len(kept)
    _require_both(category, split, kept, dropped=dropped)
    return _Chosen(kept, [*training, *calibration], leaks, leaking, dropped)


def _look_alikes(database: Database, detector: Detector, chosen: _Chosen) -> tuple[LookAlike, ...]:
    """Parts that may have been learned from under another name."""
    ids = [image.id for image in [*chosen.kept, *chosen.learned]]
    embeddings = image_embeddings_of(database, detector.extractor_id, ids)
    others = [image for image in chosen.kept if image.id not in chosen.leaking]
    return find_look_alikes(others, chosen.learned, embeddings)


@dataclass(frozen=True)
class _Measured:
    figures: dict[str, float | None]
    intervals: dict[str, Interval]
    types: tuple[TypeFigures, ...]
    replicates: Replicates
    pixel_error: float | None


def _measure(
    judgements: tuple[Judgement, ...],
    preprocessing: Preprocessing,
    threshold: float,
    options: EvaluateOptions,
    notes: list[str],
    failed: list[tuple[str, str]],
    progress: Progress,
) -> _Measured:
    """All figures of the judgements, by image and by pixel, with intervals."""
    bootstrap, seed = options.bootstrap, options.seed
    figures, replicates = image_figures(judgements, threshold, bootstrap, seed)
    of_pixels, pixel_replicates, error = pixel_figures(
        judgements, preprocessing, bootstrap, seed, notes, failed, progress
    )
    figures |= of_pixels
    replicates |= pixel_replicates
    normal = sum(not j.anomalous for j in judgements)
    rejected = [j.anomalous for j in judgements if j.scores.raw_score > threshold]
    intervals = intervals_of(
        replicates,
        {
            "detection_rate": (sum(rejected), len(judgements) - normal),
            "false_reject_rate": (len(rejected) - sum(rejected), normal),
        },
    )
    types = tuple(type_figures(judgements, threshold, bootstrap, seed))
    return _Measured(figures, intervals, types, replicates, error)


def mean_figures(
    evaluations: Sequence[Evaluation],
) -> tuple[dict[str, float | None], dict[str, Interval]]:
    """Means over categories, of the headline figures that every category has, with intervals.

    Categories are independent: the n-th resample of the mean is the mean of the n-th ones.
    """
    means: dict[str, float | None] = {}
    replicates: Replicates = {}
    for name in HEADLINES:
        values = [evaluation.figures[name] for evaluation in evaluations]
        known = [value for value in values if value is not None]
        means[name] = float(np.mean(known)) if len(known) == len(values) else None
        parts = [e.replicates[name] for e in evaluations if name in e.replicates]
        if len(parts) == len(evaluations) and len({len(part) for part in parts}) == 1:
            replicates[name] = np.mean(parts, axis=0)
    return means, intervals_of(replicates)


def _learned(database: Database, detector: Detector) -> tuple[list[StoredImage], list[StoredImage]]:
    """The images that a detector has learned from, and others that set its threshold."""
    with database.connect() as connection:
        sides = images_learned(connection, detector.id)
        images = stored_images(connection, sorted(sides[0] | sides[1]))
    learned, calibration = ([images[id_] for id_ in sorted(ids) if id_ in images] for ids in sides)
    return learned, calibration


def _require_both(
    category: str,
    split: str,
    images: Sequence[StoredImage],
    *,
    dropped: int = 0,
    failed: Sequence[tuple[str, str]] = (),
) -> None:
    anomalous = sum(image.known_label == "anomalous" for image in images)
    normal = len(images) - anomalous
    if normal and anomalous:
        return
    if split == "simulated":
        raise DatasetError(
            "simulated images are all anomalous, and evaluating needs normal ones beside them. "
            f"How many are found tells: {command('simulate', category)}; what thresholds do to "
            f"them: {command('threshold', category, simulated=True)}"
        )
    less = f", {dropped} that leak left out" if dropped else ""
    less += f", {len(failed)} that cannot be used left out, first: {failed[0][1]}" if failed else ""
    raise DatasetError(
        f"evaluating needs normal and anomalous images, and category {category!r} has {normal} "
        f"normal and {anomalous} anomalous labeled {split} images{less}. Add some with: "
        f"{command('ingest', blank('PATH'), category=category)}"
    )


def _unchanged(images: Sequence[StoredImage], failed: list[tuple[str, str]]) -> list[StoredImage]:
    """The images whose files are what was stored; each file once."""
    seen: dict[str, StoredImage] = {}
    for image in images:
        if image.path in seen:
            continue
        try:
            with open(image.path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            reason = str(error.strerror).lower()
            failed.append((image.path, f"{image.path!r} cannot be read: {reason}"))
            continue
        if digest != image.sha256:
            failed.append((image.path, str(changed(image))))
            continue
        seen[image.path] = image
    return list(seen.values())


def _scores(
    database: Database,
    settings: Settings,
    detector: Detector,
    images: Sequence[StoredImage],
    options: EvaluateOptions,
    failed: list[tuple[str, str]],
    progress: Progress,
) -> tuple[dict[int, StoredScores], int]:
    """Scores by image id, and how many were there before."""
    ids = [image.id for image in images]
    found: dict[int, StoredScores] = {}
    if not options.again:
        stored = stored_scores(database, detector.id, detector.threshold, ids)
        found = {id_: scores for id_, scores in stored.items() if scores.search != "fast"}
    reused = len(found)
    missing = {image.path: image for image in images if image.id not in found}
    if missing:
        report = inspect(
            database,
            settings,
            detector.category,
            [Path(path) for path in missing],
            search=options.search if detector.bank_info else None,
            kind=detector.kind,
            progress=progress,
        )
        if (report.detector.id, report.detector.threshold) != (detector.id, detector.threshold):
            raise Conflict(
                f"another detector or threshold of {detector.category!r} came into force during "
                "the evaluation; evaluate again"
            )
        for inspection in report.inspections:
            image, scores = missing[inspection.path], inspection.scores
            found[image.id] = StoredScores(
                image.id,
                inspection.raw_score,
                scores.worst_row,
                scores.worst_col,
                scores.distances,
                inspection.search,
            )
        failed += report.failed
    return found, reused
