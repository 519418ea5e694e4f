"""Two weeks of a production line, for the cookbook: generated parts, really inspected.

Only dates, shifts and the reviewers' words are made up. What detectors say of the parts is what
they said.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from psycopg.types.json import Jsonb

from pgdefect.core.config import Settings
from pgdefect.db.connection.engine import Database, driver
from pgdefect.db.records.reviews import review_image, review_queue
from pgdefect.db.search.queries import images_of
from pgdefect.usecases.inspect.inspect import inspect
from pgdefect.usecases.threshold import change_threshold
from pgdefect.usecases.train.options import TrainOptions
from pgdefect.usecases.train.train import train
from tests.synthetic import DEFECT_TYPES, Texture, defective_part, normal_part

DAYS = 14
SHIFTS = {"early": 7, "late": 15, "night": 23}
"""Name and an hour of each."""


def two_weeks(
    database: Database,
    settings: Settings,
    category: str,
    folder: Path,
    *,
    size: tuple[int, int],
    texture: Texture = "brushed",
    parts_a_day: int = 1,
) -> None:
    """Let a trained category, its test images inspected, see two weeks of production.

    Parts are photographed twice into `folder`; every fifth has a defect, in the last three days
    every second. The second camera is a little out of focus, and in those days dimmer. Then
    come reviews, a second bank with a threshold of its own. Patches are kept.
    """
    _photograph_parts(folder, size, texture, parts_a_day)
    # One picture of the test set was saved anew, and its file copied once more.
    test = images_of(database, category, split="test", label="anomalous")
    with Image.open(test[0].path) as picture:
        picture.save(folder / "copy-of-a-test-image.png", compress_level=1)
    inspect(database, settings, category, [folder], keep_patches=True)
    _date(database, category)
    _review(database, category)
    train(database, settings, category, TrainOptions(image_size=size, coreset_ratio=0.05))
    inspect(database, settings, category, split="test", keep_patches=True)
    change_threshold(
        database,
        category,
        "f1_max",
        None,
        detector_id=None,
        split="test",
        simulated=False,
        dry_run=False,
        rejudge=True,
    )


def _photograph_parts(
    folder: Path, size: tuple[int, int], texture: Texture, parts_a_day: int
) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(7)
    for number in range(DAYS * parts_a_day):
        day = number // parts_a_day
        often = 2 if day >= DAYS - 3 else 5
        seed = 50_000 + number
        kind = DEFECT_TYPES[number % len(DEFECT_TYPES)]
        if number % often == 1:
            image, _ = defective_part(seed, kind, size, texture=texture)
        else:
            image, _ = normal_part(seed, size, texture=texture)
            kind = "good"
        for exposure, light in (("a", 1.0), ("b", 0.97 if day < DAYS - 3 else 0.85)):
            noisy = image * light + rng.normal(0, 1.0, image.shape)
            picture = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
            if exposure == "b":
                picture = picture.filter(ImageFilter.GaussianBlur(0.6))
            picture.save(folder / f"{day:02}-{number:03}-{kind}-{exposure}.png")


def _date(database: Database, category: str) -> None:
    """Give production images their day, shift, camera and part."""
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    with database.begin() as connection:
        raw = driver(connection)
        for image in images_of(database, category, split="production"):
            day, number, _, exposure = Path(image.path).stem.split("-")[:4]
            if not day.isdigit():
                continue
            shift = list(SHIFTS)[int(number) % len(SHIFTS)]
            when = midnight - timedelta(days=DAYS - int(day)) + timedelta(hours=SHIFTS[shift])
            raw.execute(
                "UPDATE pgdefect.image SET created_at = %s, group_name = %s, attributes = %s "
                "WHERE id = %s",
                [
                    when,
                    f"part {number}",
                    Jsonb({"shift": shift, "camera": {"a": "left", "b": "right"}[exposure]}),
                    image.id,
                ],
            )
            raw.execute(
                "UPDATE pgdefect.inspection SET created_at = %s WHERE image_id = %s",
                [when, image.id],
            )


def _review(database: Database, category: str) -> None:
    """An inspector looks at every second image of the queue, and says what the parts are."""
    queue = review_queue(database, category, 1000)
    waiting = [q for q in queue if q.known_label is None]
    for queued in waiting[::2]:
        word = Path(queued.path).stem.split("-")[2]
        defect_type = word if word in DEFECT_TYPES else None
        review_image(
            database,
            str(queued.image_id),
            "anomalous" if defect_type else "normal",
            defect_type=defect_type,
            note="seen on the line",
        )
    # One is of a kind that nobody has named before.
    [chip, *_] = [
        image
        for image in images_of(database, category, split="production")
        if "-chip-" in image.path
    ]
    review_image(
        database, str(chip.id), "anomalous", defect_type="broken corner", note="a new kind"
    )
