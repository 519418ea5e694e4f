"""The gray scale is a category's: found when its first images are recorded, and kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import text

from pgdefect.db.connection.engine import Database
from pgdefect.db.records import catalog
from pgdefect.db.search.queries import images_of
from pgdefect.usecases import ingest as module
from pgdefect.usecases.common.stored_files import image_batches
from pgdefect.usecases.ingest import ingest
from pgdefect.vision.images.preprocess import Preprocessing


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (40, 40)).astype(np.float64)


def save(folder: Path, name: str, values: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(folder / name)


def sixteen(seed: int, top: int) -> np.ndarray:
    return (picture(seed) * top / 255).round().astype(np.uint16)


def scale_of(database: Database, category: str) -> catalog.GrayScaleRow:
    with database.connect() as connection:
        return catalog.gray_scale(connection, category)


def test_one_picture_in_four_depths_is_one_input(database: Database, tmp_path: Path) -> None:
    inputs = {}
    for top in (255, 1023, 4095, 65535):
        for seed in range(3):
            save(tmp_path / str(top) / "good", f"{seed}.png", sixteen(seed, top))
        report = ingest(database, tmp_path / str(top), f"of {top}")
        assert (report.added, report.failed, report.problems) == (3, (), ())
        assert scale_of(database, f"of {top}") == catalog.GrayScaleRow({"uint16": top}, True)
        failed: list[tuple[str, str]] = []
        images = images_of(database, f"of {top}")
        batches = image_batches(images, Preprocessing(image_size=(32, 32)), 3, failed)
        [batch] = list(batches)
        assert failed == []
        inputs[top] = batch.inputs
    for top in (1023, 4095, 65535):
        assert np.array_equal(inputs[top], inputs[255])


def test_a_later_file_that_breaks_the_scale_is_reported(database: Database, tmp_path: Path) -> None:
    folder = tmp_path / "good"
    for seed in range(3):
        save(folder, f"{seed}.png", sixteen(seed, 1023))
    assert ingest(database, folder, "lids").added == 3
    save(folder, "bright.png", sixteen(9, 4095))
    save(folder, "dark.png", sixteen(8, 300))
    save(folder, "eight.png", picture(7).astype(np.uint8))
    save(folder, "float.tif", picture(6).astype(np.float32))
    report = ingest(database, folder, "lids")
    assert report.added == 2
    reasons = dict(report.failed)
    assert set(reasons) == {"bright.png", "float.tif"}
    assert "up to 4095, and the gray scale of its category ends at 1023" in reasons["bright.png"]
    assert "floating-point" in reasons["float.tif"]
    [problem] = report.problems
    assert problem.startswith(
        "'eight.png' has 8-bit values; the images of this category are 16-bit"
    )
    assert scale_of(database, "lids").white == {"uint16": 1023}


def test_a_first_ingestion_that_is_interrupted_goes_on_with_its_scale(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 2)
    for seed in range(4):
        save(tmp_path / "good", f"{seed}.png", sixteen(seed, 1023 if seed < 2 else 4095))

    def stop(stage: str, done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest(database, tmp_path, "lids", progress=stop)
    assert scale_of(database, "lids") == catalog.GrayScaleRow({"uint16": 1023}, False)
    report = ingest(database, tmp_path, "lids")
    assert (report.added, report.unchanged, report.failed) == (2, 2, ())
    assert scale_of(database, "lids") == catalog.GrayScaleRow({"uint16": 4095}, True)


def test_one_odd_file_among_the_first_is_named(database: Database, tmp_path: Path) -> None:
    for seed in range(24):
        save(tmp_path / "good", f"{seed:02d}.png", sixteen(seed, 1023))
    save(tmp_path / "good", "odd.png", sixteen(99, 65535))
    report = ingest(database, tmp_path, "lids")
    [problem] = report.problems
    assert "white is 65535 because of 1 of 25 files, 'good/odd.png' first" in problem


def test_categories_from_before_there_was_a_scale_are_read_as_they_were(
    database: Database, tmp_path: Path
) -> None:
    save(tmp_path / "good", "0.png", sixteen(0, 1023))
    ingest(database, tmp_path, "lids")
    before = {"uint8": 255, "uint16": 65535, "float32": None}
    with database.begin() as connection:
        connection.execute(
            text("UPDATE pgdefect.category SET gray_scale = CAST(:scale AS jsonb)"),
            {"scale": '{"uint8": 255, "uint16": 65535, "float32": null}'},
        )
    save(tmp_path / "good", "1.tif", (picture(1) / 255).astype(np.float32))
    report = ingest(database, tmp_path, "lids")
    assert (report.added, report.failed, report.problems) == (1, (), ())
    assert scale_of(database, "lids").white == before


def test_a_dry_run_and_a_name_in_another_case(database: Database, tmp_path: Path) -> None:
    save(tmp_path / "good", "0.png", picture(0).astype(np.uint8))
    report = ingest(database, tmp_path, "base", dry_run=True)
    assert (report.dry_run, report.added, report.listed) == (True, 0, 1)
    assert [(row.folder, row.taken_as, row.count) for row in report.folders] == [
        ("good", "normal, train", 1)
    ]
    with database.connect() as connection:
        assert catalog.category_names(connection) == []
    assert ingest(database, tmp_path, "base").problems == ()
    [problem] = ingest(database, tmp_path, "Base", dry_run=True).problems
    assert problem.startswith("category 'Base' is new, beside 'base'")
    assert ingest(database, tmp_path, "base").problems == ()
