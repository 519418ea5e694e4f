"""What an evaluation leaves on disk: tables, plots, the worst misses, all anomaly maps."""

from __future__ import annotations

import csv
import io
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pgdefect.core.boxes import Box
from pgdefect.core.errors import ImageError, UsageError
from pgdefect.core.progress import Progress, silent
from pgdefect.core.types import Float32
from pgdefect.db.records.evaluations import HEADLINES
from pgdefect.pictures.contact_sheet import inspection_panel
from pgdefect.pictures.miss_sheet import COLUMNS, Miss, MissSection, miss_sheet
from pgdefect.pictures.plots import precision_recall_plot, roc_plot, score_histogram
from pgdefect.pictures.render import BoolArray, UInt8Array
from pgdefect.usecases.common.picture_files import ground_truth, save_picture, save_picture_of
from pgdefect.usecases.evaluate.evaluate import Evaluation, mean_figures
from pgdefect.usecases.evaluate.figures import Judgement
from pgdefect.vision.defects.region import region_box, worst_region
from pgdefect.vision.images.image import load_image

if TYPE_CHECKING:
    from PIL.Image import Image

MISSES_SHOWN = 2 * COLUMNS
NAMES = {
    "image_auroc": "image AUROC",
    "image_f1_max": "image F1-max",
    "average_precision": "average precision",
    "pixel_auroc": "pixel AUROC",
    "pixel_f1_max": "pixel F1-max",
    "aupro": "AUPRO",
}
_RATES = ("detection_rate", "false_reject_rate")
_TYPE_FIGURES = ("image_auroc", "detection_rate")


def map_scale(evaluation: Evaluation) -> float:
    """The score at which every picture of an evaluation is at its hottest.

    One for all, so that pictures compare: what 95 % of the anomalous images stay below, but
    at least 2 thresholds, lest a part a little above the threshold glow.
    """
    scores = [j.scores.raw_score for j in evaluation.judgements if j.anomalous]
    return max(2.0 * evaluation.threshold, float(np.quantile(scores, 0.95)))


def write_results(evaluations: Sequence[Evaluation], folder: Path) -> list[Path]:
    """Write ``results.csv`` and ``results.md``; returns the paths."""
    return [
        _write(folder / "results.csv", results_csv(evaluations)),
        _write(folder / "results.md", results_markdown(evaluations)),
    ]


def results_csv(evaluations: Sequence[Evaluation]) -> str:
    """A line per category and per defect type, and the mean of several categories.

    A figure's interval stands beside it as ``…_low`` and ``…_high``; what was not measured is
    empty.
    """
    figures = [*HEADLINES, *_RATES]
    columns = ["category", "defect_type", "detector_id", "version", "split", "threshold"]
    columns += ["normal_images", "anomalous_images", "leaks"]
    for name in figures:
        columns += [name, f"{name}_low", f"{name}_high"]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
    writer.writeheader()

    def spread(
        values: dict[str, float | None], intervals: dict[str, tuple[float, float]]
    ) -> dict[str, object]:
        row: dict[str, object] = {}
        for name in figures:
            row[name] = values.get(name)
            if name in intervals:
                row[f"{name}_low"], row[f"{name}_high"] = intervals[name]
        return row

    for e in evaluations:
        about: dict[str, object] = {
            "category": e.category,
            "detector_id": e.detector.id,
            "version": e.detector.version,
            "split": e.split,
            "threshold": e.threshold,
            "normal_images": e.normal_images,
            "leaks": len(e.leaks),
        }
        everything = {"anomalous_images": e.anomalous_images}
        writer.writerow(about | everything | spread(e.figures, e.intervals))
        for item in e.defect_types:
            values: dict[str, float | None] = {n: getattr(item, n) for n in _TYPE_FIGURES}
            kind = {"defect_type": item.defect_type, "anomalous_images": item.images}
            writer.writerow(about | kind | spread(values, item.intervals))
    if len(evaluations) > 1:
        writer.writerow({"category": "mean"} | spread(*mean_figures(evaluations)))
    return stream.getvalue()


def results_markdown(evaluations: Sequence[Evaluation]) -> str:
    """The same as tables to paste, figures with their 95 % intervals."""
    head = ["category", "normal", "anomalous", *NAMES.values()]
    rows = [
        [
            e.category,
            str(e.normal_images),
            str(e.anomalous_images),
            *(_cell(e.figures[name], e.intervals.get(name)) for name in HEADLINES),
        ]
        for e in evaluations
    ]
    if len(evaluations) > 1:
        means, intervals = mean_figures(evaluations)
        mean = [_cell(means[name], intervals.get(name)) for name in HEADLINES]
        rows.append(["**mean**", "", "", *mean])
    text = _markdown(head, rows)
    types = [
        [
            e.category,
            item.defect_type,
            str(item.images),
            _cell(item.image_auroc, item.intervals.get("image_auroc")),
            f"{item.detected} of {item.images}",
            _cell(item.detection_rate, item.intervals.get("detection_rate")),
        ]
        for e in evaluations
        for item in e.defect_types
    ]
    head = ["category", "defect type", "images", "image AUROC", "found", "detection rate"]
    text += "\n" + _markdown(head, types)
    remarks = [f"- {e.category}: {note}." for e in evaluations for note in e.notes]
    remarks += [f"- {e.category}: leak: {leak}." for e in evaluations for leak in e.leaks]
    remarks += [f"- {e.category}: perhaps a leak: {p}." for e in evaluations for p in e.look_alikes]
    resamples = evaluations[0].settings["bootstrap"]
    if resamples:
        remarks.insert(
            0,
            f"- Brackets: 95 % intervals from {resamples:,} bootstrap resamples of whole groups "
            "(parts); those of rates are at least as wide as the exact binomial ones.",
        )
    return text + ("\n" + "\n".join(remarks) + "\n" if remarks else "")


def write_plots(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write ``roc.png``, ``precision_recall.png``, ``scores.png`` and ``misses.png``."""
    normal, anomalous = (
        np.array([j.scores.raw_score for j in evaluation.judgements if j.anomalous is label])
        for label in (False, True)
    )
    figures, threshold = evaluation.figures, evaluation.threshold
    pictures = {
        "roc": roc_plot(normal, anomalous, threshold, _title(evaluation, "image_auroc")),
        "precision_recall": precision_recall_plot(
            normal, anomalous, threshold, _title(evaluation, "average_precision")
        ),
        "scores": score_histogram(
            normal,
            anomalous,
            threshold,
            f"{evaluation.category}: {figures['false_rejects']} of {len(normal)} normal images "
            f"rejected, {figures['escapes']} of {len(anomalous)} anomalous ones escape",
        ),
        "misses": _misses(evaluation),
    }
    return [save_picture(picture, folder / f"{name}.png") for name, picture in pictures.items()]


def write_maps(evaluation: Evaluation, folder: Path, progress: Progress = silent) -> list[Path]:
    """Write picture, anomaly map and ground truth of every image, all on `map_scale`."""
    vmax = map_scale(evaluation)
    written = []
    for done, judgement in enumerate(evaluation.judgements, start=1):
        image = load_image(judgement.image.path, judgement.image.gray_scale)
        scores, box, mask = _laid_over(evaluation, judgement, image)
        panel = inspection_panel(
            image,
            scores,
            mask,
            title=os.path.basename(judgement.image.path),
            threshold=evaluation.threshold,
            score=judgement.scores.raw_score,
            verdict=_verdict(evaluation, judgement),
            vmax=vmax,
            worst_box=box,
        )
        written.append(save_picture_of(judgement.image.path, panel, folder))
        progress("maps", done, len(evaluation.judgements))
    return written


def _misses(evaluation: Evaluation) -> Image:
    rejects, escapes = evaluation.misses()

    def section(
        title: str, judged: list[Judgement], total: int, label: str, worst: str
    ) -> MissSection:
        parts: dict[str, list[Judgement]] = {}
        for judgement in judged:  # photographs of one part are one miss, shown once
            part = judgement.image.part or judgement.image.sha256
            parts.setdefault(part, []).append(judgement)
        shown = list(parts.values())[:MISSES_SHOWN]
        of_parts = f" of {len(parts)} parts" if len(parts) < len(judged) else ""
        which = f"; {worst} first, {len(shown)} shown" if len(shown) < len(parts) else ""
        return MissSection(
            title,
            f"{len(judged)} of {total} {label} images{of_parts}{which}",
            [_miss(evaluation, members[0], len(members) - 1) for members in shown],
            f"None: no {label} image is judged wrongly.",
        )

    return miss_sheet(
        f"{evaluation.category}: worst misses",
        f"detector {evaluation.detector.id}, version {evaluation.detector.version}, "
        f"{evaluation.split} images; ground truth outlined in green",
        [
            section("False rejects", rejects, evaluation.normal_images, "normal", "highest scores"),
            section("Escapes", escapes, evaluation.anomalous_images, "anomalous", "lowest scores"),
        ],
        threshold=evaluation.threshold,
        vmax=map_scale(evaluation),
    )


def _miss(evaluation: Evaluation, judgement: Judgement, more: int) -> Miss:
    stored = judgement.image
    path = Path(stored.path)
    try:
        image = load_image(stored.path, stored.gray_scale)
    except ImageError:
        image = None
    scores, box, mask = (
        (None, None, None) if image is None else _laid_over(evaluation, judgement, image)
    )
    return Miss(
        name=f"{path.parent.name}/{path.name}" + (f", {more} more of this part" if more else ""),
        what=stored.known_defect_type or str(stored.known_label),
        label=str(stored.known_label),
        score=judgement.scores.raw_score,
        image=image,
        anomaly_map=scores,
        mask=mask,
        box=box,
    )


def _laid_over(
    evaluation: Evaluation, judgement: Judgement, image: UInt8Array
) -> tuple[Float32, Box, BoolArray | None]:
    """An image's anomaly map at its size, the box of its worst region, its mask if any."""
    height, width, _ = image.shape
    scores = judgement.scores
    region = worst_region(
        scores.distances, scores.worst_row, scores.worst_col, evaluation.threshold
    )
    return (
        evaluation.preprocessing.map_to_original(scores.distances, (height, width)),
        region_box(region, evaluation.preprocessing, (height, width)),
        # One that cannot be read is among the evaluation's failures already.
        ground_truth(judgement.mask_path, (height, width), [], judgement.image.path),
    )


def _verdict(evaluation: Evaluation, judgement: Judgement) -> str:
    return "anomalous" if judgement.scores.raw_score > evaluation.threshold else "normal"


def _title(evaluation: Evaluation, name: str) -> str:
    return (
        f"{evaluation.category}: {NAMES[name]} "
        f"{_cell(evaluation.figures[name], evaluation.intervals.get(name))}"
    )


def _cell(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines
    )


def _write(path: Path, text: str) -> Path:
    """In one step: readers see the whole file or none."""
    partial = path.with_name(f".{path.name}-{secrets.token_hex(6)}.tmp")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise UsageError(
            f"{str(path)!r} cannot be written: {error.strerror}. Name another place"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return path
