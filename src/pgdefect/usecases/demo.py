"""The demo: solar cells from ``elpv-dataset``, end to end.

Categories ``solar_mono`` and ``solar_poly``; a cell is normal where its defect probability
is 0 and anomalous where it is 1 (the doubtful 1/3 and 2/3 are left out). The split is fixed:
each class's files, sorted by name, are shuffled with NumPy's generator seeded with 0; the
first 188 normal cells train and set the threshold, the next 100 normal and the first 100
anomalous cells test.
"""

from __future__ import annotations

import csv
import importlib.util
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pgdefect.core.config import Settings
from pgdefect.core.detector_kinds import PATCHCORE
from pgdefect.core.errors import MissingExtra
from pgdefect.core.progress import Progress, silent
from pgdefect.db.access.roles import require_owner
from pgdefect.db.connection.engine import Database
from pgdefect.db.records.catalog import image_roots, move_root
from pgdefect.db.records.detectors import store_metrics
from pgdefect.db.records.lifecycle import delete_detector
from pgdefect.db.records.summaries import list_detectors
from pgdefect.evaluation import image_auroc
from pgdefect.usecases.common.picture_files import writable_folder
from pgdefect.usecases.ingest import ingest_dataset
from pgdefect.usecases.inspect.inspect import InspectReport, inspect
from pgdefect.usecases.pictures import save_sheet
from pgdefect.usecases.search.search import Query, SearchOptions, SearchReport, search
from pgdefect.usecases.train.options import TrainOptions
from pgdefect.usecases.train.train import TrainReport, train
from pgdefect.vision.images.dataset import Dataset, ImageRecord

PACKAGE = "elpv_dataset"
CELL_TYPES = {"solar_mono": "mono", "solar_poly": "poly"}
TRAIN_IMAGES = 188
TEST_NORMAL = 100
TEST_ANOMALOUS = 100
SEED = 0


@dataclass(frozen=True)
class DemoCategory:
    """One category's figures, measured in this run."""

    category: str
    training_images: int
    held_out_images: int
    bank_vectors: int
    image_auroc: float
    threshold: float
    test_normal: int
    test_anomalous: int
    false_rejects: int
    detected: int
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class DemoReport:
    """What the demo measured and found."""

    categories: tuple[DemoCategory, ...]
    search: SearchReport
    contact_sheet: Path
    queries: tuple[str, ...]
    seconds: float


def solar_cells(category: str) -> Dataset:
    """The demo's split of one category. Raises MissingExtra without the package."""
    root = _root()
    with open(root / "labels.csv", encoding="utf-8") as file:
        rows = [row for row in csv.reader(file, delimiter=" ", skipinitialspace=True) if row]
    cells = [
        (path, float(probability))
        for path, probability, kind in rows
        if kind == CELL_TYPES[category]
    ]
    normal = _shuffled(path for path, probability in cells if probability == 0.0)
    anomalous = _shuffled(path for path, probability in cells if probability == 1.0)
    test_normal = normal[TRAIN_IMAGES : TRAIN_IMAGES + TEST_NORMAL]
    records = [
        *(ImageRecord(p, "train", "normal") for p in normal[:TRAIN_IMAGES]),
        *(ImageRecord(p, "test", "normal") for p in test_normal),
        *(ImageRecord(p, "test", "anomalous") for p in anomalous[:TEST_ANOMALOUS]),
    ]
    return Dataset(root, tuple(sorted(records, key=lambda r: r.path)), "manifest", ())


def _root() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtra("the demo", PACKAGE, "demo")
    return Path(spec.submodule_search_locations[0]) / "data"


def _follow_the_package(database: Database) -> None:
    root = str(_root())
    with database.connect() as connection:
        known = [path for path in image_roots(connection) if path.endswith(f"/{PACKAGE}/data")]
    if known and root not in known:
        move_root(database, known[-1], root)


def run_demo(
    database: Database,
    settings: Settings,
    folder: Path,
    *,
    progress: Progress = silent,
) -> DemoReport:
    """Train, ingest and inspect both categories, then search for one defective cell.

    Detectors of earlier runs are deleted. Images of a run with the package in another place, as of
    a second clone, are the same ones: they are found in the new place from now on. The contact
    sheet is written into `folder`.
    """
    start = time.perf_counter()
    writable_folder(folder)
    require_owner(database, "training")
    _follow_the_package(database)
    results = [_run_category(database, settings, name, progress) for name in CELL_TYPES]
    # The clearest defect of the first category: the verdict a newcomer can check by eye.
    _, judged = results[0]
    defects = [i for i in judged.inspections if i.known_label == "anomalous"]
    worst = max(defects, key=lambda inspection: inspection.raw_score)
    found = search(database, settings, Query([str(worst.image_id)]), SearchOptions())
    sheet = save_sheet(found, folder / "contact_sheet.png")
    return DemoReport(
        tuple(category for category, _ in results),
        found,
        sheet,
        _queries(Path(worst.path).name, worst.category),
        time.perf_counter() - start,
    )


def _run_category(
    database: Database, settings: Settings, name: str, progress: Progress
) -> tuple[DemoCategory, InspectReport]:
    dataset = solar_cells(name)
    seconds: dict[str, float] = {}

    def ingested(split: str) -> None:
        records = tuple(record for record in dataset.records if record.split == split)
        began = time.perf_counter()
        part = Dataset(dataset.root, records, dataset.layout, ())
        ingest_dataset(database, part, name, progress=progress)
        seconds["ingest"] = seconds.get("ingest", 0.0) + time.perf_counter() - began

    ingested("train")
    trained = train(database, settings, name, TrainOptions(seed=SEED), progress=progress)
    seconds.update(trained.seconds)
    ingested("test")
    began = time.perf_counter()
    judged = inspect(database, settings, name, split="test", progress=progress)
    seconds["inspect"] = time.perf_counter() - began
    category = _figures(name, trained, judged, seconds)
    store_metrics(database, trained.detector_id, {"image_auroc": category.image_auroc})
    for detector in list_detectors(database, name):
        if detector.id != trained.detector_id and detector.kind == PATCHCORE:
            delete_detector(database, detector.id)
    return category, judged


def _figures(
    name: str, trained: TrainReport, judged: InspectReport, seconds: dict[str, float]
) -> DemoCategory:
    anomalous = [i.known_label == "anomalous" for i in judged.inspections]
    rejected = [i.is_anomalous for i in judged.inspections]
    scores = np.array([i.raw_score for i in judged.inspections])
    return DemoCategory(
        category=name,
        training_images=trained.training_images,
        held_out_images=trained.held_out_images,
        bank_vectors=trained.bank_vectors,
        image_auroc=image_auroc(scores, anomalous),
        threshold=trained.threshold,
        test_normal=anomalous.count(False),
        test_anomalous=anomalous.count(True),
        false_rejects=sum(r and not a for r, a in zip(rejected, anomalous, strict=True)),
        detected=sum(r and a for r, a in zip(rejected, anomalous, strict=True)),
        seconds=seconds,
    )


def _queries(name: str, category: str) -> tuple[str, ...]:
    return (
        "SELECT category, images, inspected_images, rejected_images, threshold "
        "FROM defect.categories;",
        "SELECT image_id, normalized_score, path FROM defect.images "
        "WHERE category = 'solar_poly' AND verdict = 'anomalous' "
        "ORDER BY normalized_score DESC LIMIT 5;",
        f"SELECT rank, distance, known_label, path FROM defect.similar_images('{name}', k => 10, "
        f"category => '{category}');",
    )


def _shuffled(paths: Iterator[str]) -> list[str]:
    ordered = sorted(paths)
    return [ordered[i] for i in np.random.default_rng(SEED).permutation(len(ordered))]
