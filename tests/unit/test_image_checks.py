"""What training says of images that make defects hard to find."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pgdefect.core.types import StoredImage
from pgdefect.usecases.train.image_checks import image_notes
from pgdefect.vision.images.preprocess import Preprocessing

PREPROCESSING = Preprocessing(image_size=(256, 256), resize="keep")


def grid_of(size: tuple[int, int]) -> tuple[int, int]:
    height, width = PREPROCESSING.input_size_of(size)
    return height // 8, width // 8


def anomalous(folder: Path, side: int, defect: int, count: int = 4) -> list[StoredImage]:
    found = []
    for n in range(count):
        mask = np.zeros((side, side), np.uint8)
        mask[side // 2 : side // 2 + defect, 20 : 20 + defect] = 255
        Image.fromarray(mask).save(folder / f"{n}_mask.png")
        found.append(
            StoredImage(
                *(n, "c", str(folder / f"{n}.png"), f"{n}.png", "test", "anomalous", "hole"),
                *(None, f"{n}_mask.png", f"{n:064}", side, side),
            )
        )
    return found


@pytest.mark.parametrize(
    ("side", "defect", "told"),
    [
        (1024, 60, None),
        (1024, 16, "a patch, which covers 32 x 32 pixels of an image: they are easily missed"),
        (1024, 16, "Train with image_size=512"),
        (1024, 4, "Train with image_size=1024, which is all that the photographs have; and"),
        (256, 4, "The photographs have no more pixels than the network sees; photograph closer"),
    ],
)
def test_defects_that_are_smaller_than_a_patch(
    tmp_path: Path, side: int, defect: int, told: str | None
) -> None:
    notes = image_notes([], anomalous(tmp_path, side, defect), PREPROCESSING, grid_of)
    if told is None:
        assert notes == []
    else:
        [note] = notes
        assert note.startswith("4 of 4 defects in the masks are smaller than a patch")
        assert told in note


def test_images_of_one_gray_level(tmp_path: Path) -> None:
    images = []
    for n in range(30):
        Image.new("L", (20, 20), n).save(tmp_path / f"{n}.png")
        images.append(
            StoredImage(
                *(n, "c", str(tmp_path / f"{n}.png"), f"{n}.png", "train", "normal", None),
                *(None, None, f"{n:064}", 20, 20),
            )
        )
    [note] = image_notes(images, images, PREPROCESSING, grid_of)
    assert "one gray level each" in note
    shown = np.random.default_rng(0).integers(0, 255, (20, 20), dtype=np.uint8)
    Image.fromarray(shown).save(tmp_path / "0.png")
    assert image_notes(images, images, PREPROCESSING, grid_of) == []
