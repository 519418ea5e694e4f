"""Pictures of other depths than 8 bits, and what else a decoder meets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pgdefect.core.errors import ImageError
from pgdefect.usecases.common.files_seen import FilesSeen
from pgdefect.vision.images.gray_scale import Samples, described, white_of, widened
from pgdefect.vision.images.image import ImageFile, load_image, probe_image

PICTURE = np.random.default_rng(0).integers(0, 256, (12, 9)).astype(np.float64)
PICTURE[0, :2] = 0, 255


def scaled(top: float, kind: type) -> np.ndarray:
    values = PICTURE * top / 255
    return (values if kind is np.float32 else values.round()).astype(kind)


@pytest.mark.parametrize(
    ("top", "kind", "suffix", "white"),
    [
        (255, np.uint16, "png", {"uint16": 255}),
        (1023, np.uint16, "tif", {"uint16": 1023}),
        (4095, np.uint16, "png", {"uint16": 4095}),
        (16383, np.uint16, "tif", {"uint16": 16383}),
        (65535, np.uint16, "png", {"uint16": 65535}),
        (4095, np.int32, "tif", {"int32": 4095}),
        (1_048_575, np.int32, "tif", {"int32": 1_048_575}),
        (1, np.float32, "tif", {"float32": 1}),
        (255, np.float32, "tif", {"float32": 255}),
        (4095, np.float32, "tif", {"float32": 4095}),
    ],
)
def test_the_same_picture_in_any_depth(
    tmp_path: Path, top: float, kind: type, suffix: str, white: Mapping[str, float]
) -> None:
    path = tmp_path / f"picture.{suffix}"
    Image.fromarray(scaled(top, kind)).save(path)
    found = widened({}, probe_image(path, {}).samples)
    assert found == white
    exact = load_image(path, found)[..., 0].astype(int)
    assert (exact == PICTURE).all()


def test_a_dark_picture_is_read_by_the_scale_of_its_category(tmp_path: Path) -> None:
    dark, bright = tmp_path / "dark.png", tmp_path / "bright.png"
    Image.fromarray(scaled(4095, np.uint16) // 32).save(dark)
    Image.fromarray(scaled(4095, np.uint16)).save(bright)
    scale = widened({}, probe_image(dark, {}).samples)
    assert scale == {"uint16": 255}
    scale = widened(scale, probe_image(bright, {}).samples)
    assert scale == {"uint16": 4095}
    assert load_image(dark, scale).max() == 8
    assert widened(scale, probe_image(dark, {}).samples) == scale


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("channels", [3, 4])
def test_16_bit_colors_keep_their_low_bits(tmp_path: Path, big: bool, channels: int) -> None:
    """Of 10 bits in 16 the high bytes are 0 to 3: black, where they are read alone."""
    cv2 = pytest.importorskip("cv2")
    colors = np.repeat((PICTURE * 1023 / 255).round().astype(np.uint16)[..., None], channels, 2)
    colors[..., 0] //= 2
    if channels == 4:
        colors[..., 3] = 1023
    path = tmp_path / ("colors.png" if big else "colors.tif")
    cv2.imwrite(str(path), colors)
    file = probe_image(path, {})
    assert widened({}, file.samples) == {"uint16": 1023}
    pixels = load_image(path, {"uint16": 1023})
    assert np.abs(pixels[..., 0].astype(int) - PICTURE).max() <= 1
    assert np.abs(pixels[..., 2].astype(int) - PICTURE / 2).max() <= 1


def test_netpbm_says_its_scale_itself(tmp_path: Path) -> None:
    values = scaled(1023, np.uint16)
    path = tmp_path / "picture.pgm"
    path.write_bytes(b"P5 9 12 1023\n" + values.astype(">u2").tobytes())
    file = probe_image(path, {})
    assert widened({}, file.samples) == {"netpbm16": 65535}
    assert np.abs(load_image(path)[..., 0].astype(int) - PICTURE).max() <= 1


def test_a_file_that_breaks_the_scale_is_refused() -> None:
    scale = {"uint16": 1023.0}
    assert white_of(scale, Samples("uint16", 1023), "x") == 1023
    with pytest.raises(ImageError, match=r"up to 1024, and the gray scale .* ends at 1023"):
        white_of(scale, Samples("uint16", 1024), "x")
    with pytest.raises(ImageError, match=r"are 16-bit \(white at 1023\): how bright"):
        white_of(scale, Samples("float32", 0.5), "x")
    with pytest.raises(ImageError, match="are 8-bit"):
        white_of({"uint8": 255.0}, Samples("uint16", 900), "x")
    assert white_of(scale, Samples("uint8", 255), "x") == 255
    assert white_of({"float32": None}, Samples("float32", 3), "x") is None
    assert described({"uint8": 255.0, "uint16": 4095.0}) == "16-bit (white at 4095) and 8-bit"


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        (np.array([[-3, 5]], np.int32), "from -3 to 5"),
        (np.array([[np.nan, 5]], np.float32), "without NaN"),
        (np.array([[np.inf, 5]], np.float32), "without NaN"),
        (np.array([[-0.5, 5]], np.float32), "from -0.5 to 5"),
    ],
)
def test_values_that_no_scale_holds(tmp_path: Path, values: np.ndarray, fault: str) -> None:
    Image.fromarray(values).save(tmp_path / "x.tif")
    for scale in (None, {}, {"int32": 255.0, "float32": 255.0}):
        with pytest.raises(ImageError, match=fault):
            load_image(tmp_path / "x.tif", scale)


def test_alpha_that_is_zero_throughout(tmp_path: Path) -> None:
    colors = np.dstack([PICTURE.astype(np.uint8)] * 3 + [np.zeros(PICTURE.shape, np.uint8)])
    Image.fromarray(colors, "RGBA").save(tmp_path / "x.png")
    file = probe_image(tmp_path / "x.png")
    assert file.samples.alpha_ignored
    assert (load_image(tmp_path / "x.png")[..., 1] == PICTURE).all()
    colors[0, 0, 3] = 255
    Image.fromarray(colors, "RGBA").save(tmp_path / "y.png")
    assert not probe_image(tmp_path / "y.png").samples.alpha_ignored
    assert load_image(tmp_path / "y.png")[1:].max() == 0


def test_lab_is_converted(tmp_path: Path) -> None:
    gray = Image.new("LAB", (4, 3), (128, 128, 128))
    gray.save(tmp_path / "x.tif")
    pixels = load_image(tmp_path / "x.tif").astype(int)
    assert pixels.shape == (3, 4, 3)
    assert np.abs(pixels - 119).max() <= 3


def pages(path: Path) -> None:
    first, second = (Image.new("L", (5, 4), value) for value in (40, 200))
    first.save(path, save_all=True, append_images=[second])


@pytest.mark.parametrize("name", ["x.tif", "x.gif", "x.png"])
def test_the_first_of_several_pages(tmp_path: Path, name: str) -> None:
    pages(tmp_path / name)
    file = probe_image(tmp_path / name)
    assert file.samples.pages == 2
    assert load_image(tmp_path / name).max() == 40
    seen = FilesSeen(None)
    seen.add(name, file)
    assert f"{name!r} has more than one page or frame; the first is read" in seen.problems()


def told(kinds: Mapping[str, Samples], scale: Mapping[str, float] | None = None) -> str:
    seen = FilesSeen(scale)
    for n, (path, samples) in enumerate(kinds.items()):
        seen.add(path, ImageFile(Path(path), f"{n:064}", 1, 1, 1, samples=samples))
    return "\n".join(seen.problems())


def test_what_is_said_of_a_run() -> None:
    usual = {f"{n}.png": Samples("uint16", 900.0 + n) for n in range(30)}
    assert told(usual) == ""
    odd = told({**usual, "odd.png": Samples("uint16", 60_000)})
    assert "white is 65535 because of 1 of 31 files, 'odd.png' first" in odd
    assert "end at 1023" in odd
    several = told({**usual, "b.png": Samples("uint8", 255)})
    assert "several depths: 16-bit (white at 1023) and 8-bit" in several
    other = told({"b.png": Samples("uint8", 255)}, {"uint16": 1023.0})
    assert "'b.png' has 8-bit values; the images of this category are 16-bit" in other
    flat = {f"{n}.png": Samples("uint8", 255, one_level=n < 2) for n in range(5)}
    assert told(flat) == (
        "2 files, '0.png' first, have one gray level throughout: nothing can be seen in them"
    )
    assert told({"b.png": Samples("uint8", 255, one_level=True)}) == ""
