"""What a detector would find: defects drawn on a category's normal images, and inspected."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pgdefect.core.config import Settings
from pgdefect.core.errors import Conflict, DatasetError, UsageError
from pgdefect.core.json_shapes import failed_json
from pgdefect.core.progress import Progress, silent
from pgdefect.core.types import Detector, DetectorKind, Inspection, StoredImage
from pgdefect.core.wording import blank, command, option
from pgdefect.db.connection.engine import Database
from pgdefect.db.records import simulations as rows
from pgdefect.db.records.detectors import active_detector
from pgdefect.db.search.queries import images_of, stored_images
from pgdefect.usecases.common.files import folder_name
from pgdefect.usecases.inspect.inspect import inspect
from pgdefect.usecases.simulate.draw_simulated import Recipe, digest, draw, recipes, remove_empty
from pgdefect.vision.defects.simulate import CONTRASTS, KINDS, SIZES, Contrast, Kind, Size
from pgdefect.vision.images.masks import load_mask

Source = Literal["test", "held_out", "training"]
"""Normal images a detector has not seen, those that set its threshold, those it may know."""
FOUND = 0.9
"""The detection rate from which on a size counts as found."""
MAX_COUNT = 100_000


@dataclass(frozen=True)
class Simulated:
    """A simulated image with what the detector said of it.

    Attributes:
        in_place: the worst patch touches the defect, or the patch beside it does.
    """

    image_id: int
    path: str
    mask_path: str
    kind: Kind
    size: Size
    contrast: Contrast
    detected: bool
    in_place: bool
    raw_score: float
    normalized_score: float


@dataclass(frozen=True)
class Rate:
    """How many of some images were rejected; in_place of them for the defect's place."""

    images: int
    detected: int
    in_place: int

    @property
    def rate(self) -> float | None:
        return self.detected / self.images if self.images else None


@dataclass(frozen=True)
class SimulationReport:
    """Detection rates of simulated defects.

    Attributes:
        sources: how many normal images were altered: ``test`` ones; ``held_out`` training images,
            which set the threshold; other ``training`` images. Of training images in a memory bank
            the unaltered parts look more normal than a new photograph's would: what is found is
            the defect.
        unaltered: the same images before, those that set the threshold by the score they had for
            it, without the other training images; None where there are only those.
        added: how many simulated images are new.
    """

    category: str
    detector: Detector
    seed: int
    folder: str
    sources: dict[Source, int]
    added: int
    images: tuple[Simulated, ...]
    unaltered: Rate | None
    failed: tuple[tuple[str, str], ...]

    def rate(
        self, kind: Kind | None = None, size: Size | None = None, contrast: Contrast | None = None
    ) -> Rate:
        """Of the images of that kind, size and contrast; None takes all."""
        chosen = [
            image
            for image in self.images
            if kind in (None, image.kind)
            and size in (None, image.size)
            and contrast in (None, image.contrast)
        ]
        return Rate(
            len(chosen),
            sum(image.detected for image in chosen),
            sum(image.detected and image.in_place for image in chosen),
        )

    @property
    def kinds(self) -> list[Kind]:
        return [kind for kind in KINDS if self.rate(kind).images]

    @property
    def sizes(self) -> list[Size]:
        return [size for size in SIZES if self.rate(size=size).images]

    @property
    def contrasts(self) -> list[Contrast]:
        return [contrast for contrast in CONTRASTS if self.rate(contrast=contrast).images]

    def smallest_found(
        self, kind: Kind | None = None, contrast: Contrast | None = None
    ) -> Size | None:
        """The smallest size detected in at least 90 % of the images, as are all larger ones."""
        found: Size | None = None
        for size in reversed(SIZES):
            rate = self.rate(kind, size, contrast).rate
            if rate is None:
                continue
            if rate < FOUND:
                break
            found = size
        return found

    def to_json(self) -> dict[str, Any]:
        """Rates and images as plain values."""

        def figures(rate: Rate) -> dict[str, Any]:
            return {
                "images": rate.images,
                "detected": rate.detected,
                "in_place": rate.in_place,
                "rate": rate.rate,
            }

        return {
            "category": self.category,
            "detector_id": self.detector.id,
            "threshold": self.detector.threshold,
            "seed": self.seed,
            "folder": self.folder,
            "sources": self.sources,
            "added": self.added,
            "rates": [
                {"by": group, "value": name, **figures(rate)} for group, name, rate in cells(self)
            ],
            "kind_and_size": [
                {"kind": kind, "size": size, **figures(self.rate(kind, size))}
                for kind in self.kinds
                for size in self.sizes
            ],
            "smallest_found": {
                kind: {
                    "all": self.smallest_found(kind),
                    **{c: self.smallest_found(kind, c) for c in self.contrasts},
                }
                for kind in self.kinds
            },
            "unaltered": self.unaltered
            and {"images": self.unaltered.images, "rejected": self.unaltered.detected},
            "images": self.images,
            "failed": failed_json(self.failed),
        }


def cells(report: SimulationReport) -> list[tuple[str, str, Rate]]:
    """Rates over all, then by kind, size and contrast, as `(of what, which, rate)`."""
    found: list[tuple[str, str, Rate]] = [("all", "", report.rate())]
    found += [("kind", kind, report.rate(kind)) for kind in report.kinds]
    found += [("size", size, report.rate(size=size)) for size in report.sizes]
    found += [
        ("contrast", contrast, report.rate(contrast=contrast)) for contrast in report.contrasts
    ]
    return found


def simulate(
    database: Database,
    settings: Settings,
    category: str,
    *,
    kinds: Sequence[str] = (),
    count: int = 120,
    seed: int = 0,
    output: Path | None = None,
    detector_kind: DetectorKind | None = None,
    progress: Progress = silent,
) -> SimulationReport:
    """Draw defects on normal images, record them as simulated, and inspect them.

    Images and masks go to `output`, by default ``simulated/<category>`` in the data
    directory. The same seed, kinds and count again add nothing: what is recorded already is
    inspected again. `detector_kind` chooses between detectors of two kinds. Interrupted while
    drawing, neither files nor rows are left.

    Raises:
        UnknownCategory, NoActiveDetector; UsageError: an unknown kind, or a folder
        that cannot be written to; DatasetError: no normal image to alter, or none large enough;
        Conflict: images of this seed lie elsewhere, or foreign files are in the way.
    """
    chosen = check_kinds(kinds)
    if not 1 <= count <= MAX_COUNT:
        raise UsageError(f"{option('count')} must lie between 1 and {MAX_COUNT:,}, not {count}")
    detector = active_detector(database, category, detector_kind)
    plan = recipes(chosen, count, seed)
    failed: list[tuple[str, str]] = []
    with database.lock(f"simulation of {category}"):
        known = {file.path: file for file in rows.simulated_files(database, category)}
        folder = _folder(settings, category, output, plan, known)
        todo = [recipe for recipe in plan if recipe.path not in known]
        if todo:
            sources = _sources(database, category, detector)
            failed += draw(database, detector.category_id, folder, todo, sources, progress)
    recorded = {file.path: file for file in rows.simulated_files(database, category)}
    files = [recorded[recipe.path] for recipe in plan]
    paths = [os.path.join(file.root, file.path) for file in files]
    if lost := [path for path, file in zip(paths, files, strict=True) if not _is_there(file)]:
        raise DatasetError(
            f"{len(lost)} simulated images are recorded and their files are gone or altered, "
            f"{lost[0]!r} first. Start over with: "
            f"{command('simulate', category, remove=True, yes=True)}"
        )
    report = inspect(
        database,
        settings,
        category,
        [Path(path) for path in paths],
        kind=detector.kind,
        # Each simulated image is judged once by this detector and threshold.
        event_key=f"simulate: detector {detector.id}, threshold {detector.threshold!r}",
        progress=progress,
    )
    judged = {inspection.path: inspection for inspection in report.inspections}
    images = [
        _simulated(recipe, file, judged[path])
        for recipe, file, path in zip(plan, files, paths, strict=True)
        if path in judged
    ]
    standing, at_training, unseen = _standing(database, detector, files)
    count, rejected = len(at_training), sum(score > detector.threshold for score in at_training)
    if unseen:
        before = inspect(
            database,
            settings,
            category,
            unseen,
            store=False,
            kind=detector.kind,
            progress=progress,
        )
        count += len(before.inspections)
        rejected += sum(inspection.is_anomalous for inspection in before.inspections)
        failed += before.failed
    return SimulationReport(
        category,
        detector,
        seed,
        folder,
        standing,
        len(todo),
        tuple(images),
        Rate(count, rejected, 0) if count else None,
        tuple(dict.fromkeys([*failed, *report.failed])),
    )


def remove(database: Database, category: str) -> int:
    """Delete a category's simulated images, rows and files; returns how many there were.

    A file that is not what was written is left where it is.
    """
    with database.lock(f"simulation of {category}"):
        gone = rows.delete_simulated(database, category)
        folders: set[Path] = set()
        for file in gone:
            root = Path(file.root)
            image = root / file.path
            if digest(image) == file.sha256:
                image.unlink()
                if file.mask_path is not None:
                    (root / file.mask_path).unlink(missing_ok=True)
                    folders.add((root / file.mask_path).parent)
                folders.add(image.parent)
        for folder in folders:
            remove_empty(folder, {Path(file.root) for file in gone})
    return len(gone)


def _is_there(file: rows.SimulatedFile) -> bool:
    """Whether the image is what was drawn, and its mask is there."""
    root = Path(file.root)
    return digest(root / file.path) == file.sha256 and (
        file.mask_path is None or (root / file.mask_path).exists()
    )


def check_kinds(kinds: Sequence[str]) -> list[Kind]:
    """The kinds named, in their own order; all where none is. Raises UsageError."""
    for kind in kinds:
        if kind not in KINDS:
            raise UsageError(f"{option('kind')} is one of {', '.join(KINDS)}, not {kind!r}")
    return [kind for kind in KINDS if not kinds or kind in kinds]


def _folder(
    settings: Settings,
    category: str,
    output: Path | None,
    plan: Sequence[Recipe],
    known: dict[str, rows.SimulatedFile],
) -> str:
    """Where the images go: beside those there are of this category, unless told otherwise."""
    roots = {known[recipe.path].root for recipe in plan if recipe.path in known}
    roots = roots or {file.root for file in known.values()}
    if output is None and len(roots) == 1:
        return next(iter(roots))
    default = settings.data_dir / "simulated" / folder_name(category)
    folder = os.path.abspath(default if output is None else output)
    elsewhere = {known[r.path].root for r in plan if r.path in known} - {folder}
    if elsewhere:
        raise Conflict(
            f"images of this seed are in {min(elsewhere)!r} already. Leave {option('output')} out, "
            "take "
            f"another {option('seed')}, or start over with: "
            f"{command('simulate', category, remove=True, yes=True)}"
        )
    return folder


def _sources(database: Database, category: str, detector: Detector) -> list[StoredImage]:
    """Normal images to alter, each content once, by content: those least known to the detector."""
    test = images_of(database, category, split="test", label="normal")
    training = images_of(database, category, split="train", label="normal")
    held_out = rows.held_out_scores(database, detector.id)
    images = test or [image for image in training if image.id in held_out] or training
    if not images:
        raise DatasetError(
            f"category {category!r} has no normal images to draw defects on. Add some with: "
            f"{command('ingest', blank('PATH'), category=category)}"
        )
    alone = {image.sha256: image for image in reversed(images)}
    return [alone[sha256] for sha256 in sorted(alone)]


def _standing(
    database: Database, detector: Detector, files: Sequence[rows.SimulatedFile]
) -> tuple[dict[Source, int], list[float], list[Path]]:
    """What the altered images are to the detector; of those that set the threshold the scores
    they had for it, of test images the files.
    """
    with database.connect() as connection:
        images = stored_images(connection, sorted({file.source_image_id for file in files}))
    held_out = rows.held_out_scores(database, detector.id)

    def source(image: StoredImage) -> Source:
        if image.split != "train":
            return "test"
        return "held_out" if image.id in held_out else "training"

    standing = {image.path: source(image) for image in images.values()}
    known = [held_out[id_] for id_, image in images.items() if standing[image.path] == "held_out"]
    unseen = [Path(p) for p, name in standing.items() if name == "test" and os.path.exists(p)]
    return dict(Counter(standing.values())), known, unseen


def _simulated(recipe: Recipe, file: rows.SimulatedFile, inspection: Inspection) -> Simulated:
    mask_path = os.path.join(file.root, file.mask_path or "")
    x, y, width, height = inspection.worst_box
    mask = load_mask(mask_path)
    beside = mask[max(0, y - height) : y + 2 * height, max(0, x - width) : x + 2 * width]
    return Simulated(
        file.id,
        inspection.path,
        mask_path,
        recipe.kind,
        recipe.size,
        recipe.contrast,
        inspection.is_anomalous,
        bool(beside.any()),
        inspection.raw_score,
        inspection.normalized_score,
    )
