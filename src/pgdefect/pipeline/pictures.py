"""Pictures of inspections and searches, written as PNG."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pgdefect.errors import ImageError, UsageError
from pgdefect.pipeline.progress import Progress, silent
from pgdefect.pipeline.search import SearchReport
from pgdefect.types import Inspection
from pgdefect.vision.contact_sheet import SheetQuery, SheetTile, contact_sheet, inspection_panel
from pgdefect.vision.image import load_image, load_mask
from pgdefect.vision.preprocess import Preprocessing
from pgdefect.vision.render import save_png

if TYPE_CHECKING:
    from PIL.Image import Image


def writable_folder(folder: Path) -> None:
    """Make a folder for pictures, before the work whose result they show.

    Raises UsageError where it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = "" if os.access(folder, os.W_OK | os.X_OK) else "permission denied"
    except OSError as error:
        reason = str(error.strerror).lower()
    if reason:
        raise UsageError(
            f"pictures cannot be written to {str(folder)!r}: {reason}. Name another folder"
        )


def _save(picture: Image, path: Path) -> Path:
    try:
        return save_png(picture, path)
    except OSError as error:
        raise UsageError(
            f"the picture {str(path)!r} cannot be written: {error.strerror}. Name another place"
        ) from error


def save_map(inspection: Inspection, preprocessing: Preprocessing, path: Path) -> Path:
    """Write picture, anomaly map and, where known, ground truth side by side."""
    image = load_image(inspection.path)
    height, width, _ = image.shape
    mask = None
    if inspection.mask_path is not None and os.path.exists(inspection.mask_path):
        mask = load_mask(inspection.mask_path, (height, width))
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
    return _save(panel, path)


def save_maps(
    inspections: Sequence[Inspection],
    preprocessing: Preprocessing,
    folder: Path,
    progress: Progress = silent,
) -> list[Path]:
    """Write one picture per inspection, named after image and folder; returns the paths."""
    written: list[Path] = []
    taken: set[str] = set()
    for done, inspection in enumerate(inspections, start=1):
        path = Path(inspection.path)
        name = f"{path.parent.name}_{path.stem}" if path.parent.name else path.stem
        unique, number = name, 2
        while unique in taken:
            unique, number = f"{name}_{number}", number + 1
        taken.add(unique)
        written.append(save_map(inspection, preprocessing, folder / f"{unique}.png"))
        progress("maps", done, len(inspections))
    return written


def save_sheet(report: SearchReport, preprocessing: Preprocessing, path: Path) -> Path:
    """Write the contact sheet of a search: query, anomaly map, neighbors."""
    inspection = report.inspection
    image = load_image(inspection.path)
    height, width, _ = image.shape
    facts = [("Detector", str(inspection.detector_id))]
    if inspection.label is not None:
        facts.append(("Labelled", inspection.defect_type or inspection.label))
    query = SheetQuery(
        name=os.path.basename(inspection.path),
        image=image,
        anomaly_map=preprocessing.map_to_original(inspection.scores.distances, (height, width)),
        category=inspection.category,
        verdict=inspection.verdict,
        score=inspection.raw_score,
        threshold=inspection.threshold,
        worst_box=inspection.worst_box,
        facts=facts,
    )
    tiles = []
    for neighbor in report.neighbors:
        try:
            picture = load_image(neighbor.image.path)
        except ImageError:
            picture = None
        tiles.append(
            SheetTile(
                neighbor.rank,
                neighbor.distance,
                neighbor.image.path,
                picture,
                neighbor.image.label,
                neighbor.image.defect_type,
                neighbor.image.category,
            )
        )
    return _save(contact_sheet(query, tiles), path)
