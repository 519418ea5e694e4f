"""Masks count as drawn, in whatever way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pgdefect.core.errors import ImageError
from pgdefect.vision.images.image import load_image
from pgdefect.vision.images.masks import load_mask, looks_like_mask

DRAWN = np.zeros((20, 30), bool)
DRAWN[4:9, 6:16] = True


def palette(numbers: np.ndarray, colors: list[int]) -> Image.Image:
    image = Image.fromarray(numbers.astype(np.uint8), "P")
    image.putpalette(colors + [0] * (768 - len(colors)))
    return image


def colored(on: tuple[int, ...], off: tuple[int, ...], mode: str) -> Image.Image:
    pixels = np.where(DRAWN[..., None], np.array(on), np.array(off)).astype(np.uint8)
    return Image.fromarray(pixels, mode)


WAYS = {
    "255.png": Image.fromarray(np.uint8(255) * DRAWN),
    "0_and_1.png": Image.fromarray(DRAWN.astype(np.uint8)),
    "0_and_3.bmp": Image.fromarray(np.uint8(3) * DRAWN),
    "bits.png": Image.fromarray(DRAWN),
    "16_bit_1.png": Image.fromarray(DRAWN.astype(np.uint16)),
    "16_bit.png": Image.fromarray(np.uint16(65535) * DRAWN),
    "float.tif": Image.fromarray(DRAWN.astype(np.float32)),
    "voc.png": palette(DRAWN, [0, 0, 0, 127, 0, 0]),
    "black_palette.png": palette(DRAWN, [0, 0, 0, 0, 0, 0]),
    "no_black.png": palette(DRAWN, [200, 200, 200, 255, 0, 0]),
    "turned_palette.png": palette(~DRAWN, [255, 255, 255, 0, 0, 0]),
    "red.png": colored((200, 0, 0), (0, 0, 0), "RGB"),
    "on_nothing.png": colored((255, 0, 0, 255), (0, 0, 0, 0), "RGBA"),
    "black_on_nothing.png": colored((0, 0, 0, 255), (0, 0, 0, 0), "RGBA"),
    "alpha_zero.png": colored((255, 255, 255, 0), (0, 0, 0, 0), "RGBA"),
    "gif.gif": Image.fromarray(np.uint8(255) * DRAWN),
}


@pytest.mark.parametrize("name", WAYS)
def test_a_mask_drawn_in_any_way(tmp_path: Path, name: str) -> None:
    WAYS[name].save(tmp_path / name)
    assert (load_mask(tmp_path / name) == DRAWN).all()
    assert looks_like_mask(tmp_path / name)


def test_numbers_of_classes_on_either_side_of_128(tmp_path: Path) -> None:
    values = np.where(DRAWN, np.uint8(200), np.uint8(0))
    values[12:16, 12:18] = 50
    Image.fromarray(values).save(tmp_path / "x.png")
    assert (load_mask(tmp_path / "x.png") == (values > 0)).all()


@pytest.mark.parametrize(("background", "marked"), [(20, 220), (1, 2), (40, 90), (100, 255)])
def test_a_background_that_is_not_black(tmp_path: Path, background: int, marked: int) -> None:
    values = np.where(DRAWN, marked, background).astype(np.uint8)
    Image.fromarray(values).save(tmp_path / "mask.png")
    assert (load_mask(tmp_path / "mask.png") == DRAWN).all()


def test_softened_borders_count_from_half_on(tmp_path: Path) -> None:
    values = np.where(DRAWN, np.uint8(255), np.uint8(0))
    values[3, 6:16], values[9, 6:16] = 60, 200
    Image.fromarray(values).save(tmp_path / "x.png")
    assert (load_mask(tmp_path / "x.png") == (values >= 128)).all()


def test_noise_of_a_jpeg_is_nothing_drawn(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 9, DRAWN.shape, dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "x.jpg", quality=60)
    assert not load_mask(tmp_path / "x.jpg").any()


def test_a_folder_of_masks_is_their_union(tmp_path: Path) -> None:
    folder = tmp_path / "000"
    folder.mkdir()
    other = np.zeros_like(DRAWN)
    other[15:, 25:] = True
    Image.fromarray(np.uint8(255) * DRAWN).save(folder / "000.png")
    Image.fromarray(np.uint8(240) * other).save(folder / "001.png")
    assert (load_mask(folder, DRAWN.shape) == (DRAWN | other)).all()
    Image.new("L", (3, 3)).save(folder / "002.png")
    with pytest.raises(ImageError, match="not of one size"):
        load_mask(folder)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_mask_drawn_on_the_pixels_as_stored_is_turned_with_its_image(
    tmp_path: Path, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.uint8(255) * DRAWN)
    stored.save(tmp_path / "image.png", exif=exif)
    stored.save(tmp_path / "mask.png")
    shown = load_image(tmp_path / "image.png")
    size = shown.shape[:2]
    assert size == (30, 20)
    turned = load_mask(tmp_path / "mask.png", size, image=tmp_path / "image.png")
    assert (turned == (shown[..., 0] == 255)).all()
    Image.fromarray(shown).save(tmp_path / "as_shown.png")
    assert (
        load_mask(tmp_path / "as_shown.png", size, image=tmp_path / "image.png") == turned
    ).all()
    with pytest.raises(ImageError, match="20 rows and 30 columns"):
        load_mask(tmp_path / "mask.png", size)


def test_photographs_do_not_look_like_masks(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(60, 200, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg")
    Image.fromarray(np.full((20, 30), 90, np.uint8)).save(tmp_path / "gray.png")
    (tmp_path / "broken.png").write_bytes(b"x")
    assert looks_like_mask(tmp_path / "a.jpg") is False
    assert looks_like_mask(tmp_path / "gray.png") is False
    soft = np.full((20, 30), 250, np.uint8)
    soft[:10] = np.random.default_rng(0).integers(0, 12, (10, 30))
    Image.fromarray(soft).save(tmp_path / "soft.png")
    assert looks_like_mask(tmp_path / "soft.png") is True
    assert looks_like_mask(tmp_path / "broken.png") is None
