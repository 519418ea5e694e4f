"""The figures of an evaluation, from images that were judged."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pgdefect.core.errors import ImageError
from pgdefect.core.progress import Progress
from pgdefect.core.threads import one_blas_thread_each
from pgdefect.core.thresholds import rate_interval
from pgdefect.core.types import StoredImage
from pgdefect.db.records.evaluations import StoredScores
from pgdefect.evaluation import (
    ImagePixels,
    PixelCounts,
    average_precision,
    f1_max,
    image_auroc,
    image_replicates,
    percentile_interval,
    pixel_replicates,
    score_edges,
)
from pgdefect.usecases.common.parts import part_numbers
from pgdefect.vision.images.masks import load_mask
from pgdefect.vision.images.preprocess import Preprocessing

UNNAMED = "(unnamed)"
"""The defect type of anomalous images that have none."""

PIXEL_ERROR = 1e-3
"""Binning errors above this are reported."""

Interval = tuple[float, float]
Replicates = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class TypeFigures:
    """One defect type: its images against all normal ones."""

    defect_type: str
    images: int
    detected: int
    image_auroc: float
    detection_rate: float
    intervals: dict[str, Interval]


@dataclass(frozen=True)
class Judgement:
    """One evaluated image with its scores."""

    image: StoredImage
    scores: StoredScores

    @property
    def anomalous(self) -> bool:
        return self.image.known_label == "anomalous"

    @property
    def mask_path(self) -> str | None:
        if self.image.mask_path is None:
            return None
        root = self.image.path.removesuffix(self.image.relative_path)
        return os.path.join(root, self.image.mask_path)


def intervals_of(
    replicates: Replicates, counts: Mapping[str, tuple[int, int]] | None = None
) -> dict[str, Interval]:
    """The 95 % interval of each figure that has one.

    Args:
        counts: of rates, how many of how many. Theirs is never narrower than the exact one of as
            many independent images: resampling cannot draw what was never seen, and of no escape
            among six would say that there is none.
    """
    found = {name: percentile_interval(values) for name, values in replicates.items()}
    for name, of in (counts or {}).items():
        resampled, exact = found.get(name), rate_interval(*of)
        if resampled is not None and exact is not None:
            found[name] = (min(resampled[0], exact[0]), max(resampled[1], exact[1]))
    return {name: interval for name, interval in found.items() if interval is not None}


def image_figures(
    judgements: Sequence[Judgement], threshold: float, bootstrap: int, seed: int
) -> tuple[dict[str, float | None], Replicates]:
    scores, anomalous = _arrays(judgements)
    rejected = scores > threshold
    best, position = f1_max(scores, anomalous)
    figures: dict[str, float | None] = {
        "image_auroc": image_auroc(scores, anomalous),
        "image_f1_max": best,
        "image_f1_max_threshold": position,
        "average_precision": average_precision(scores, anomalous),
        "detection_rate": float(rejected[anomalous].mean()),
        "false_reject_rate": float(rejected[~anomalous].mean()),
        "escapes": int((~rejected & anomalous).sum()),
        "false_rejects": int((rejected & ~anomalous).sum()),
    }
    replicates = image_replicates(
        scores, anomalous, threshold, _groups(judgements), bootstrap, seed
    )
    return figures, replicates


def pixel_figures(
    judgements: Sequence[Judgement],
    preprocessing: Preprocessing,
    bootstrap: int,
    seed: int,
    notes: list[str],
    failed: list[tuple[str, str]],
    progress: Progress,
) -> tuple[dict[str, float | None], Replicates, float | None]:
    """The pixel figures with their replicates, and how far binning can have moved them.

    An anomalous image whose mask is empty has normal pixels only; one without a mask, or with
    one that cannot be read, takes no part, since which of its pixels are normal is not known.
    """
    none: dict[str, float | None] = dict.fromkeys(
        ("pixel_auroc", "pixel_f1_max", "pixel_f1_max_threshold", "aupro")
    )
    lacking = [j for j in judgements if j.anomalous and j.mask_path is None]
    taking_part = [j for j in judgements if not (j.anomalous and j.mask_path is None)]
    if not any(j.anomalous for j in taking_part):
        notes.append("no anomalous image has a ground-truth mask: there are no pixel figures")
        return none, {}, None
    if lacking:
        notes.append(
            f"{len(lacking)} anomalous images have no ground-truth mask and take no part in the "
            f"pixel figures, {lacking[0].image.path!r} first"
        )
    counts = PixelCounts(score_edges(j.scores.distances for j in taking_part))

    def count(judgement: Judgement) -> tuple[ImagePixels | None, bool]:
        """The image's counts and whether its mask is empty; None where it cannot be read."""
        size = (judgement.image.height, judgement.image.width)
        mask = None
        if judgement.anomalous and judgement.mask_path is not None:
            try:
                mask = load_mask(judgement.mask_path, size, image=judgement.image.path)
            except ImageError as error:
                failed.append((judgement.mask_path, str(error)))
                return None, False
        scores = preprocessing.map_to_original(judgement.scores.distances, size)
        return counts.count(scores, mask), mask is not None and not mask.any()

    counted: list[Judgement] = []
    empty: list[str] = []
    with one_blas_thread_each() as num_threads, ThreadPoolExecutor(num_threads) as pool:
        for judgement, (pixels, is_empty) in zip(
            taking_part, pool.map(count, taking_part), strict=True
        ):
            if is_empty:
                empty.append(str(judgement.mask_path))
            if pixels is not None:
                counts.add(pixels)
                counted.append(judgement)
            progress("pixels", len(counted), len(taking_part))
    if empty:
        notes.append(
            f"{len(empty)} anomalous images have an empty ground-truth mask: all their pixels "
            f"count as normal, and they have no region for AUPRO: {', '.join(sorted(empty)[:5])}"
            + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
        )
    if not counts.has_both:
        notes.append("the ground-truth masks mark no pixel, or all: there are no pixel figures")
        return none, {}, None
    figures = counts.figures()
    if figures.error > PIXEL_ERROR:
        notes.append(f"the pixel figures are exact to {figures.error:.1g} only")
    replicates = pixel_replicates(counts, _groups(counted), bootstrap, seed)
    return {name: getattr(figures, name) for name in none}, replicates, figures.error


def type_figures(
    judgements: Sequence[Judgement], threshold: float, bootstrap: int, seed: int
) -> Iterator[TypeFigures]:
    normal = [j for j in judgements if not j.anomalous]
    by_type: dict[str, list[Judgement]] = {}
    for judgement in judgements:
        if judgement.anomalous:
            by_type.setdefault(judgement.image.known_defect_type or UNNAMED, []).append(judgement)
    for name, members in sorted(by_type.items()):
        both = [*normal, *members]
        scores, anomalous = _arrays(both)
        replicates = image_replicates(scores, anomalous, threshold, _groups(both), bootstrap, seed)
        wanted = ("image_auroc", "detection_rate")
        detected = int((scores[anomalous] > threshold).sum())
        yield TypeFigures(
            name,
            len(members),
            detected,
            image_auroc(scores, anomalous),
            detected / len(members),
            intervals_of(
                {key: replicates[key] for key in wanted if key in replicates},
                {"detection_rate": (detected, len(members))},
            ),
        )


def _arrays(judgements: Sequence[Judgement]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    return (
        np.array([j.scores.raw_score for j in judgements]),
        np.array([j.anomalous for j in judgements]),
    )


def _groups(judgements: Sequence[Judgement]) -> NDArray[np.int64]:
    return part_numbers([j.image for j in judgements])
