"""One wrong image among the normal ones: named, left out of threshold, then of the bank."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from cells import TINY
from PIL import Image
from sqlalchemy import text

from pgdefect.core.config import Settings
from pgdefect.db.connection.engine import Database
from pgdefect.db.records.reviews import review_image, review_queue
from pgdefect.usecases.ingest import ingest
from pgdefect.usecases.inspect.inspect import inspect
from pgdefect.usecases.train.options import TrainOptions
from pgdefect.usecases.train.train import TrainReport, train
from tests.synthetic import normal_part, write_dataset

SIDE = (128, 128)
Kind = Literal["clean", "foreign", "defective", "black"]


def with_bar(image: np.ndarray) -> np.ndarray:
    """A bright bar on a part: a defect that nobody could miss."""
    image = image.copy()
    image[40:50, 30:90] = 250
    return image


OTHER: dict[Kind, Callable[[], np.ndarray]] = {
    "foreign": lambda: normal_part(5, SIDE, texture="woven")[0],
    "defective": lambda: with_bar(normal_part(6, SIDE)[0]),
    "black": lambda: np.zeros((*SIDE, 3), dtype=np.uint8),
}


@pytest.fixture(scope="module")
def plates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(
        tmp_path_factory.mktemp("plates") / "plates",
        num_train=20,
        num_test_normal=4,
        num_per_defect=2,
        seed=11,
        size=SIDE,
    )


@pytest.fixture
def learn(
    trained: Database, settings: Settings, plates: Path, tmp_path: Path
) -> Callable[..., TrainReport]:
    """Train a category of 20 normal images, one of which is of another kind."""

    def work(kind: Kind) -> TrainReport:
        folder = shutil.copytree(plates, tmp_path / kind)
        if kind in OTHER:
            Image.fromarray(OTHER[kind]()).save(folder / "train/good/007.png")
        ingest(trained, folder, kind)
        return train(trained, settings, kind, TrainOptions(**PLAIN))

    return work


PLAIN = {"image_size": TINY.image_size, "whiten": 0.0}


def vectors_of(database: Database, report: TrainReport, image_id: int) -> int:
    with database.connect() as connection:
        return int(
            connection.scalar(
                text(
                    "SELECT count(*) FROM pgdefect.memory_bank_patch "
                    "WHERE bank_id = :bank AND image_id = :image"
                ),
                {"bank": report.detector_id, "image": image_id},
            )
            or 0
        )


def test_clean_images_have_no_outliers(learn: Callable[..., TrainReport]) -> None:
    report = learn("clean")
    assert report.outliers == ()
    assert report.threshold_with_outliers is None


@pytest.mark.parametrize("kind", sorted(OTHER))
def test_one_wrong_image_in_twenty_does_not_disable_a_detector(
    kind: Kind, learn: Callable[..., TrainReport], trained: Database, settings: Settings
) -> None:
    def found(category: Kind) -> int:
        judged = inspect(trained, settings, category, split="test").inspections
        return sum(i.is_anomalous for i in judged if i.known_label == "anomalous")

    clean = learn("clean")
    report = learn(kind)
    [odd] = report.outliers
    assert odd.path.endswith("train/good/007.png")
    assert odd.in_bank
    assert vectors_of(trained, report, odd.image_id)
    assert report.threshold_with_outliers is not None
    assert report.threshold < 0.6 * report.threshold_with_outliers
    assert report.held_out_images == 20
    assert review_queue(trained, kind)[0].image_id == odd.image_id
    assert report.threshold < 1.2 * clean.threshold
    assert found(kind) >= max(3, found("clean") - 1)


@pytest.mark.parametrize("kind", ["foreign", "defective"])
def test_two_wrong_images_of_a_kind_do_not_hide_each_other(
    kind: str, trained: Database, settings: Settings, plates: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(plates, tmp_path / "two")
    for number in (7, 13):
        part = normal_part(50 + number, SIDE, texture="woven" if kind == "foreign" else "brushed")
        odd = part[0] if kind == "foreign" else with_bar(part[0])
        Image.fromarray(odd).save(folder / f"train/good/{number:03d}.png")
    ingest(trained, folder, "two")
    report = train(trained, settings, "two", TrainOptions(**PLAIN))
    assert sorted(Path(odd.path).name for odd in report.outliers) == ["007.png", "013.png"]
    assert report.threshold_with_outliers is not None
    assert report.threshold < 0.6 * report.threshold_with_outliers


def test_outliers_are_left_out_of_the_bank_by_one_command(
    learn: Callable[..., TrainReport], trained: Database, settings: Settings
) -> None:
    first = learn("defective")
    [odd] = first.outliers
    options = TrainOptions(**PLAIN, leave_out_outliers=True)
    second = train(trained, settings, "defective", options)
    assert second.training_images == first.training_images - 1
    assert vectors_of(trained, second, odd.image_id) == 0
    # It stays in the queue: nobody has looked at it.
    [left_out] = second.outliers
    assert (left_out.image_id, left_out.in_bank) == (odd.image_id, False)
    # Its scratch is not in the bank any more, and scores more than it did.
    assert left_out.raw_score >= odd.raw_score * 0.9
    third = train(trained, settings, "defective", options)
    assert [image.image_id for image in third.outliers] == [odd.image_id]
    assert vectors_of(trained, third, odd.image_id) == 0


def test_in_a_new_category_one_command_names_and_leaves_out(
    trained: Database, settings: Settings, plates: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(plates, tmp_path / "new")
    Image.fromarray(OTHER["foreign"]()).save(folder / "train/good/007.png")
    ingest(trained, folder, "new")
    report = train(trained, settings, "new", TrainOptions(**PLAIN, leave_out_outliers=True))
    [odd] = report.outliers
    assert not odd.in_bank
    assert vectors_of(trained, report, odd.image_id) == 0


def test_reviews_decide(
    learn: Callable[..., TrainReport], trained: Database, settings: Settings
) -> None:
    first = learn("foreign")
    [odd] = first.outliers
    review_image(trained, str(odd.image_id), "normal")
    kept = train(trained, settings, "foreign", TrainOptions(**PLAIN, leave_out_outliers=True))
    assert kept.outliers == ()
    assert vectors_of(trained, kept, odd.image_id) > 0
    assert kept.threshold == pytest.approx(first.threshold_with_outliers, rel=1e-3)
    done = review_image(trained, str(odd.image_id), "anomalous")
    assert done.learned_vectors == vectors_of(trained, kept, odd.image_id)
    without = train(trained, settings, "foreign", TrainOptions(**PLAIN))
    assert without.training_images == 19
    assert vectors_of(trained, without, odd.image_id) == 0
    assert without.threshold < 0.6 * first.threshold_with_outliers
