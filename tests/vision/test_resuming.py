"""A training that was cut short is taken up, and makes the bank it would have made."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import text

from pgdefect.cli.main import run
from pgdefect.core.config import Settings
from pgdefect.core.errors import Busy, DatabaseUnavailable
from pgdefect.db.connection.engine import Database
from pgdefect.usecases.doctor import examine
from pgdefect.usecases.ingest import ingest
from pgdefect.usecases.train.options import TrainOptions
from pgdefect.usecases.train.train import TrainReport, train
from pgdefect.usecases.train.training_run import TrainingRun
from soak.state import database_state
from tests.synthetic import write_dataset

pytestmark = pytest.mark.train

OPTIONS = TrainOptions(image_size=(128, 128), batch_size=4)
TRAIN_IMAGES, TEST_IMAGES = 14, 5


def count(database: Database, table: str, where: str = "true") -> int:
    with database.connect() as connection:
        found = connection.scalar(text(f"SELECT count(*) FROM {table} WHERE {where}"))
    assert isinstance(found, int)
    return found


class Stop:
    """Progress that loses the database at a stage, once so much of it is done."""

    def __init__(self, stage: str, least: int) -> None:
        self.stage, self.least = stage, least
        self.extracted: list[int] = []

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage == "extract":
            self.extracted.append(done)
        if stage == self.stage and done >= self.least:
            raise DatabaseUnavailable("lost the connection")


@pytest.fixture
def here(settings: Settings, tmp_path: Path) -> Settings:
    """Settings with a cache of the test's own."""
    return settings.model_copy(update={"cache_dir": tmp_path / "cache"})


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sizes of pictures, so that batches end before they are full."""
    folder = write_dataset(
        tmp_path_factory.mktemp("resumed") / "parts",
        num_train=TRAIN_IMAGES - 3,
        num_test_normal=TEST_IMAGES - 3,
        num_per_defect=1,
        seed=5,
        size=(128, 128),
    )
    for n in range(3):
        with Image.open(folder / f"train/good/{n:03}.png") as picture:
            picture.resize((200, 128)).save(folder / f"train/good/wide{n}.png")
    return folder


@pytest.fixture(scope="module")
def _begun(
    new_database: Callable[..., Database], _trained_template: Database, pictures: Path
) -> Database:
    database = new_database(_trained_template)
    ingest(database, pictures, "wanted")
    return database


@pytest.fixture
def begun(clone_of: Any, _begun: Database) -> Iterator[Database]:
    """A category to train, with an extractor that another has used."""
    with clone_of(_begun) as database:
        yield database


@pytest.fixture(scope="module")
def undisturbed(
    clone_of: Any, _begun: Database, tmp_path_factory: pytest.TempPathFactory, settings: Settings
) -> dict[str, tuple[int, str]]:
    """The rows that a training leaves which nothing happens to."""
    with clone_of(_begun) as database:
        cache = tmp_path_factory.mktemp("undisturbed")
        train(database, settings.model_copy(update={"cache_dir": cache}), "wanted", OPTIONS)
        return database_state(database.url)[0]


def run_once(database: Database, here: Settings, options: TrainOptions, stop: Stop) -> TrainReport:
    with TrainingRun(here, database, ["wanted"], options) as run:
        return train(database, here, "wanted", options, run=run, progress=stop)


def cut_short(database: Database, here: Settings, stage: str, least: int) -> Stop:
    stop = Stop(stage, least)
    with pytest.raises(DatabaseUnavailable):
        run_once(database, here, OPTIONS, stop)
    return stop


def again(database: Database, here: Settings, **changes: Any) -> tuple[TrainReport, list[int]]:
    """Train again; the report, and the numbers of images extracted as they were told."""
    stop = Stop("never", 0)
    return run_once(database, here, replace(OPTIONS, **changes), stop), stop.extracted


def spools(here: Settings) -> list[Path]:
    return list(here.cache_dir.glob("training-of-*"))


@pytest.mark.parametrize(
    ("stage", "least", "resumed"),
    [("extract", 1, 3), ("extract", 8, 11), ("coreset", 1, 14), ("threshold", 1, 14),
     ("load", 1, 14), ("index", 1, 14)],
)  # fmt: skip
def test_a_training_that_lost_the_database_is_taken_up(
    begun: Database,
    here: Settings,
    undisturbed: dict[str, tuple[int, str]],
    stage: str,
    least: int,
    resumed: int,
) -> None:
    stop = cut_short(begun, here, stage, least)
    assert len(spools(here)) == 1
    report, extracted = again(begun, here)
    assert (report.resumed_images, report.extracted_images) == (resumed, TRAIN_IMAGES)
    # No image was looked at twice, and batches are those of a training without a pause.
    assert [*stop.extracted, *extracted] == [3, 7, 11, 14]
    assert not report.already_stored
    assert not spools(here)
    assert database_state(begun.url)[0] == undisturbed


def test_a_detector_that_was_stored_is_not_made_again(
    begun: Database, here: Settings, undisturbed: dict[str, tuple[int, str]]
) -> None:
    detectors = count(begun, "pgdefect.detector")
    cut_short(begun, here, "embed", 0)
    assert count(begun, "pgdefect.detector") == detectors + 1
    report, extracted = again(begun, here)
    assert report.already_stored
    assert extracted == []
    assert report.training_images == report.held_out_images == TRAIN_IMAGES
    assert count(begun, "pgdefect.detector") == detectors + 1
    assert database_state(begun.url)[0] == undisturbed
    # Asked for once more, it is another version: nothing was cut short.
    assert not again(begun, here)[0].already_stored
    assert count(begun, "pgdefect.detector") == detectors + 2


def test_other_options_make_another_detector_from_the_same_patches(
    begun: Database, here: Settings
) -> None:
    cut_short(begun, here, "embed", 0)
    report, extracted = again(begun, here, coreset_ratio=0.2)
    assert (report.already_stored, report.resumed_images) == (False, TRAIN_IMAGES)
    assert extracted == []
    assert count(begun, "pgdefect.detector", "settings->>'coreset_ratio' = '0.2'") == 1


KILLED = """
import contextlib, os, signal, sys
from pgdefect.cli import main, training

def progress(name, done, total):
    if name == "extract" and done > 4:
        os.kill(os.getpid(), signal.SIGKILL)

@contextlib.contextmanager
def bars(quiet=False):
    yield progress

training.progress_bars = bars
sys.exit(main.run(sys.argv[1:]))
"""


def test_a_killed_command_is_taken_up_by_the_same_command(
    begun: Database,
    here: Settings,
    undisturbed: dict[str, tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PGDEFECT_CACHE_DIR", str(here.cache_dir))
    command = ["--database-url", begun.url, "train", "wanted"]
    command += ["--image-size", "128x128", "--resize", "keep", "--batch-size", "4"]
    killed = subprocess.run([sys.executable, "-c", KILLED, *command], timeout=300)
    assert killed.returncode == -signal.SIGKILL
    wait_until_idle(begun)
    capfd.readouterr()
    assert run(command) == 0
    assert "wanted: reused 7 of 14 images extracted before" in capfd.readouterr().err.splitlines()
    assert not spools(here)
    assert database_state(begun.url)[0] == undisturbed


def wait_until_idle(database: Database) -> None:
    """Until the server has noticed that the killed process is gone."""
    deadline = time.monotonic() + 120
    while count(
        database,
        "pg_stat_activity",
        "datname = current_database() AND pid <> pg_backend_pid() "
        "AND backend_type = 'client backend'",
    ):
        database.dispose()
        assert time.monotonic() < deadline, "sessions of a killed process stay"
        time.sleep(0.05)


@pytest.mark.parametrize("changes", [{"batch_size": 5}, {"precision": "single"}])
def test_what_patches_depend_on_makes_a_spool_stale(
    begun: Database, here: Settings, changes: dict[str, Any]
) -> None:
    cut_short(begun, here, "extract", 8)
    report, extracted = again(begun, here, **changes)
    assert report.resumed_images == 0
    assert extracted[0] == 3
    assert not spools(here)


def test_a_file_that_changed_makes_a_spool_stale(
    begun: Database, here: Settings, pictures: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(pictures, moved)
    with begun.begin() as connection:
        connection.execute(
            text("UPDATE pgdefect.image_root SET path = :new WHERE path = :old"),
            {"new": str(moved), "old": str(pictures)},
        )
    (moved / "train/good/wide1.png").unlink()
    cut_short(begun, here, "coreset", 0)
    # It could not be read, and now it can: the bank has it, as without the pause.
    shutil.copy(pictures / "train/good/wide1.png", moved / "train/good/wide1.png")
    report, _ = again(begun, here)
    assert (report.resumed_images, report.failed) == (0, ())


def test_files_that_cannot_be_read_are_told_again(
    begun: Database, here: Settings, pictures: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(pictures, moved)
    with begun.begin() as connection:
        connection.execute(
            text("UPDATE pgdefect.image_root SET path = :new WHERE path = :old"),
            {"new": str(moved), "old": str(pictures)},
        )
    for name in ("000", "005", "010"):
        (moved / f"train/good/{name}.png").write_bytes(b"no picture")
    cut_short(begun, here, "extract", 5)
    report, _ = again(begun, here)
    assert report.resumed_images == 7
    assert {Path(path).stem for path, _ in report.failed} == {"000", "005", "010"}


def test_training_in_two_places_at_once_is_busy_and_leaves_the_spool(
    begun: Database, here: Settings
) -> None:
    cut_short(begun, here, "extract", 8)
    [spool] = spools(here)
    with begun.lock("training of wanted"), pytest.raises(Busy, match="training of wanted"):
        again(begun, here)
    assert spools(here) == [spool]
    assert again(begun, here)[0].resumed_images == 11


def test_doctor_tells_of_what_was_left(begun: Database, here: Settings) -> None:
    cut_short(begun, here, "extract", 8)
    part = here.cache_dir / "extractors" / "abc.123.part"
    part.write_bytes(b"half a network")

    def found() -> dict[str, bool]:
        findings = examine(begun, here).findings
        return {f.subject: f.fixable for f in findings if f.check == "leftover-files"}

    [spool] = spools(here)
    assert found() == {str(spool): False, str(part): True}
    examine(begun, here, fix=True)
    assert found() == {str(spool): False}
    then = os.stat(spool / "batches").st_mtime - 4 * 86_400
    os.utime(spool / "batches", (then, then))
    assert found() == {str(spool): True}
    assert examine(begun, here, fix=True).fixed[0].error is None
    assert (found(), spools(here)) == ({}, [])


def test_doctor_says_nothing_of_a_training_under_way(begun: Database, here: Settings) -> None:
    looked: list[list[str]] = []

    def look(stage: str, done: int, total: int) -> None:
        if stage == "coreset" and not looked:
            found = examine(begun, here).findings
            looked.append([f.subject for f in found if f.check == "leftover-files"])

    train(begun, here, "wanted", OPTIONS, progress=look)
    assert looked == [[]]


def test_the_spool_has_the_bank_bit_for_bit(begun: Database, here: Settings) -> None:
    """Vectors, from the spool that was taken up and without a pause, compared in full."""
    banks = []
    for disturbed in (True, False):
        if disturbed:
            cut_short(begun, here, "extract", 8)
        report, _ = again(begun, here)
        assert bool(report.resumed_images) is disturbed
        with begun.connect() as connection:
            rows = connection.execute(
                text(
                    "SELECT position, image_id, row, col, embedding::text "
                    "FROM pgdefect.memory_bank_patch WHERE bank_id = :id ORDER BY position"
                ),
                {"id": report.detector_id},
            ).all()
        banks.append(rows)
    assert len(banks[0]) > 200
    assert banks[0] == banks[1]
    assert np.unique([row.image_id for row in banks[0]]).size == TRAIN_IMAGES
