"""Pictures of inspections and searches, written as PNG."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pgdefect.core.errors import ImageError, UsageError
from pgdefect.core.progress import Progress, silent
from pgdefect.core.types import Inspection, StoredImage
from pgdefect.pictures.contact_sheet import SheetQuery, SheetTile, contact_sheet, inspection_panel
from pgdefect.pictures.render import UInt8Array
from pgdefect.pictures.simulation_sheet import SimulationTile, simulation_sheet
from pgdefect.usecases.common.picture_files import (
    ground_truth,
    save_picture,
    save_picture_of,
    writable_folder,
)
from pgdefect.usecases.search.search import SearchReport
from pgdefect.usecases.simulate.simulate import SimulationReport
from pgdefect.vision.defects.simulate import CONTRASTS, SIZES, Contrast, Kind, Size
from pgdefect.vision.images.image import IMAGE_SUFFIXES, load_image
from pgdefect.vision.images.masks import load_mask
from pgdefect.vision.images.preprocess import Preprocessing

if TYPE_CHECKING:
    from PIL.Image import Image


def writable_sheet(path: Path) -> None:
    """Raises UsageError where a contact sheet cannot be written or is called another format."""
    if path.suffix.lower() in IMAGE_SUFFIXES - {".png"}:
        raise UsageError(f"contact sheets are PNG files: call it {str(path.with_suffix('.png'))!r}")
    writable_folder(path.parent)


def save_map(
    inspection: Inspection,
    preprocessing: Preprocessing,
    folder: Path,
    failed: list[tuple[str, str]],
) -> Path:
    """Write picture, anomaly map and, where known, ground truth side by side; returns where."""
    image = load_image(inspection.path, inspection.gray_scale)
    height, width, _ = image.shape
    mask = ground_truth(inspection.mask_path, (height, width), failed, inspection.path)
    panel = inspection_panel(
        image,
        preprocessing.map_to_original(inspection.scores.distances, (height, width)),
        mask,
        title=os.path.basename(inspection.path),
        threshold=inspection.threshold,
        score=inspection.raw_score,
        verdict=inspection.verdict,
        worst_box=inspection.worst_box,
    )
    return save_picture_of(inspection.path, panel, folder)


def save_maps(
    inspections: Sequence[Inspection],
    preprocessing: Preprocessing,
    folder: Path,
    progress: Progress = silent,
) -> list[tuple[str, str]]:
    """Write one picture per inspection, named after image and folder; returns path and reason of
    the ground truth that could not be outlined.
    """
    failed: list[tuple[str, str]] = []
    for done, inspection in enumerate(inspections, start=1):
        save_map(inspection, preprocessing, folder, failed)
        progress("maps", done, len(inspections))
    return failed


def save_sheet(report: SearchReport, path: Path) -> Path:
    """Write the contact sheet of a search. Raises UsageError where that cannot be."""
    return save_picture(search_sheet(report), path)


def search_sheet(report: SearchReport, image: UInt8Array | None = None) -> Image:
    """The contact sheet of a search: query, anomaly map, neighbors, what matched.

    Args:
        image: the query's pixels, where it is no file.
    """
    tiles = [
        SheetTile(
            neighbor.rank,
            neighbor.distance,
            short_path(neighbor.image.path),
            _picture_or_none(neighbor.image),
            neighbor.image.known_label,
            neighbor.image.defect_shown,
            neighbor.image.category,
            neighbor.region.box if neighbor.region else None,
            neighbor.image.part,
            neighbor.copies,
        )
        for neighbor in report.neighbors
    ]
    return contact_sheet(_sheet_query(report, image), tiles, by=f"by {report.by}")


def _sheet_query(report: SearchReport, image: UInt8Array | None) -> SheetQuery:
    inspection = report.inspection
    others = [f"+ {os.path.basename(word)}" for word in report.like[1:]]
    others += [f"- {os.path.basename(word)}" for word in report.unlike]
    asked = [("And", ", ".join(others))] if others else []
    if inspection is None:
        assert report.image is not None
        return SheetQuery(
            name=report.query,
            image=_picture_or_none(report.image),
            category=report.category,
            verdict=report.image.known_label,
            facts=[("Image", os.path.basename(report.image.path))],
            boxes=report.regions,
        )
    if image is None:
        image = load_image(inspection.path, inspection.gray_scale)
    height, width, _ = image.shape
    assert report.preprocessing is not None
    facts = [("Detector", str(inspection.detector_id))]
    if inspection.known_label is not None:
        facts.append(("Known as", inspection.known_defect_type or inspection.known_label))
    if report.vote is not None:
        facts.append(("Defect" if report.vote.is_unlike else "Probably", str(report.vote)))
    return SheetQuery(
        name=os.path.basename(inspection.path),
        image=image,
        anomaly_map=report.preprocessing.map_to_original(
            inspection.scores.distances, (height, width)
        ),
        category=inspection.category,
        verdict=inspection.verdict,
        score=inspection.raw_score,
        threshold=inspection.threshold,
        worst_box=inspection.worst_box,
        facts=[*facts, *asked],
        boxes=report.regions,
    )


def short_path(path: str) -> str:
    """A path as it is said in the working directory, where it lies below."""
    short = os.path.relpath(path)
    return path if short.startswith(os.pardir) else short


def _picture_or_none(image: StoredImage) -> UInt8Array | None:
    try:
        return load_image(image.path, image.gray_scale)
    except ImageError:
        return None


def save_simulation_sheet(report: SimulationReport, path: Path) -> Path:
    """Write a sheet with the first simulated image of each kind, size and contrast."""

    def tile(kind: Kind, size: Size, contrast: Contrast) -> SimulationTile | None:
        for image in report.images:
            if (image.kind, image.size, image.contrast) == (kind, size, contrast):
                verdict = "anomalous" if image.detected else "normal"
                picture, mask = load_image(image.path), load_mask(image.mask_path)
                return SimulationTile(picture, mask, verdict, image.normalized_score)
        return None

    rows = [
        (kind.replace("_", "-"), f"{contrast} ({levels:g} levels)", tiles)
        for kind in report.kinds
        for contrast, levels in CONTRASTS.items()
        if any(tiles := [tile(kind, size, contrast) for size in SIZES])
    ]
    columns = [f"{size} ({100 * share:g} % of the area)" for size, share in SIZES.items()]
    title = f"{report.category}: simulated defects, seed {report.seed}"
    return save_picture(simulation_sheet(title, columns, rows), path)
