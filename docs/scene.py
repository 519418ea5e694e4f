"""Two weeks of a production line, for the cookbook: generated parts, really inspected.

Photographs are named as a line names them: `inspect` reads line, shift, camera, part and time
from their paths. What detectors say of them is what they said; the reviewers' words are made up.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from sqlalchemy import text

from pgdefect.core.config import Settings
from pgdefect.db.connection.engine import Database
from pgdefect.db.records.reviews import review_image, review_queue
from pgdefect.db.search.queries import images_of
from pgdefect.usecases.inspect.inspect import inspect
from pgdefect.usecases.inspect.photo_context import ContextSource
from pgdefect.usecases.threshold import change_threshold
from pgdefect.usecases.train.options import TrainOptions
from pgdefect.usecases.train.train import train
from tests.synthetic import DEFECT_TYPES, Texture, defective_part, normal_part

DAYS = 14
SHIFTS = {"early": 7, "late": 15, "night": 23}
"""Name and an hour of each."""
LINES = ("L1", "L2")
PATTERN = "{line}-{shift}-{camera}-{part}-{_kind}-{taken:%Y%m%dT%H%M%S}.png"


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
    photographs = _photograph_parts(folder, size, texture, parts_a_day)
    # One picture of the test set was saved anew, and its file copied once more.
    test = images_of(database, category, split="test", label="anomalous")
    copy = folder / "copy-of-a-test-image.png"
    with Image.open(test[0].path) as picture:
        picture.save(copy, compress_level=1)
    inspect(database, settings, category, [copy], keep_patches=True)
    context = ContextSource(path_pattern=PATTERN, time_zone="UTC")
    for line in LINES:
        inspect(
            database,
            settings,
            category,
            [path for path in photographs if path.name.startswith(line)],
            keep_patches=True,
            station=f"station {line}",
            context=context,
        )
    # The laboratory looks again at the last days' parts, with another search.
    inspect(database, settings, category, photographs[-12:], search="exact", station="laboratory")
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
) -> list[Path]:
    """Write the photographs, named for `PATTERN`; returns their paths by time."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(7)
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    written = []
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
        shift = list(SHIFTS)[number % len(SHIFTS)]
        taken = midnight - timedelta(days=DAYS - day) + timedelta(hours=SHIFTS[shift])
        start = f"{LINES[number // parts_a_day % len(LINES)]}-{shift}"
        for camera, light in (("left", 1.0), ("right", 0.97 if day < DAYS - 3 else 0.85)):
            noisy = image * light + rng.normal(0, 1.0, image.shape)
            picture = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
            if camera == "right":
                picture = picture.filter(ImageFilter.GaussianBlur(0.6))
            name = f"{start}-{camera}-P{number:03}-{kind}-{taken:%Y%m%dT%H%M%S}.png"
            picture.save(folder / name)
            written.append(folder / name)
    return written


def _review(database: Database, category: str) -> None:
    """An inspector looks at every second image of the queue, and says what the parts are."""
    queue = review_queue(database, category, 1000)
    waiting = [q for q in queue if q.known_label is None]
    for queued in waiting[::2]:
        word = _kind(queued.path)
        defect_type = word if word in DEFECT_TYPES else None
        review_image(
            database,
            str(queued.image_id),
            "anomalous" if defect_type else "normal",
            defect_type=defect_type,
            note="seen on the line",
        )
    # One of each that the detector was wrong about, by the inspector's word.
    production = images_of(database, category, split="production")
    for verdict, label in (("anomalous", "normal"), ("normal", "anomalous")):
        with database.connect() as connection:
            wrong = connection.scalar(
                text(
                    "SELECT image_id FROM defect.images WHERE category = :category "
                    "AND split = 'production' AND verdict = :verdict AND known_label IS NULL "
                    "ORDER BY abs(normalized_score - 0.5), image_id LIMIT 1"
                ),
                {"category": category, "verdict": verdict},
            )
        if wrong is not None:
            review_image(database, str(wrong), label, note="held against the light")
    # One is of a kind that nobody has named before.
    [chip, *_] = [image for image in production if _kind(image.path) == "chip"]
    review_image(
        database, str(chip.id), "anomalous", defect_type="broken corner", note="a new kind"
    )


def _kind(path: str) -> str:
    """What was drawn on a photograph, by its name; "" for one of another name."""
    words = Path(path).stem.split("-")
    return words[4] if len(words) == 6 else ""
