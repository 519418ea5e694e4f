from __future__ import annotations

import hashlib
import os
import struct
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from pgdefect.core.errors import ImageError
from pgdefect.vision.images import image as image_module
from pgdefect.vision.images.image import (
    IMAGE_SUFFIXES,
    load_image,
    probe_image,
    read_image,
)
from pgdefect.vision.images.masks import load_mask

RNG = np.random.default_rng(7)
COLOR = RNG.integers(0, 256, (23, 31, 3), dtype=np.uint8)
GRAY = COLOR[..., 0]
ALPHA = RNG.integers(0, 256, (23, 31), dtype=np.uint8)


def encode(image: Image.Image, form: str, **options: object) -> bytes:
    stream = BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def three(gray: np.ndarray) -> np.ndarray:
    return np.repeat(gray[:, :, None], 3, axis=2)


def over_black(color: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return np.rint(color.astype(float) * alpha[..., None] / 255).astype(np.uint8)


def assert_pixels(data: bytes, expected: np.ndarray, tolerance: int = 0) -> None:
    pixels = load_image(data)
    assert pixels.dtype == np.uint8
    assert pixels.shape == expected.shape
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    assert np.abs(pixels.astype(int) - expected).max() <= tolerance


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "WEBP"])
def test_rgb(form: str) -> None:
    options = {"lossless": True} if form == "WEBP" else {}
    assert_pixels(encode(Image.fromarray(COLOR), form, **options), COLOR)


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF"])
def test_gray_becomes_three_equal_channels(form: str) -> None:
    assert_pixels(encode(Image.fromarray(GRAY), form), three(GRAY))


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF"])
def test_one_bit(form: str) -> None:
    bits = GRAY > 127
    data = encode(Image.fromarray(bits), form)
    assert Image.open(BytesIO(data)).mode == "1"
    assert_pixels(data, three(bits.astype(np.uint8) * 255))


def test_jpeg_gray_color_and_ycbcr() -> None:
    smooth = np.linspace(0, 255, 64 * 64).reshape(64, 64).astype(np.uint8)
    assert_pixels(encode(Image.fromarray(smooth), "JPEG", quality=95), three(smooth), 4)
    color = np.stack([smooth, smooth.T, np.full_like(smooth, 90)], axis=2)
    assert_pixels(encode(Image.fromarray(color), "JPEG", quality=95, subsampling=0), color, 12)


@pytest.mark.parametrize("mode", ["YCbCr", "CMYK", "LAB"])
def test_other_color_spaces(mode: str) -> None:
    source = Image.new("RGB", (20, 10), (200, 100, 50))
    if mode == "LAB":
        from PIL import ImageCms

        rgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        converted = ImageCms.profileToProfile(source, rgb, lab, outputMode="LAB")
    else:
        converted = source.convert(mode)
    data = encode(converted, "TIFF")
    assert Image.open(BytesIO(data)).mode == mode
    assert_pixels(data, np.array(source), 3)


def test_cmyk_jpeg() -> None:
    data = encode(Image.new("RGB", (32, 32), (200, 100, 50)).convert("CMYK"), "JPEG")
    assert Image.open(BytesIO(data)).mode == "CMYK"
    assert_pixels(data, np.full((32, 32, 3), (200, 100, 50)), 4)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
def test_alpha_is_composited_over_black(form: str) -> None:
    options = {"lossless": True, "exact": True} if form == "WEBP" else {}
    rgba = np.dstack([COLOR, ALPHA])
    assert_pixels(encode(Image.fromarray(rgba), form, **options), over_black(COLOR, ALPHA), 1)


def test_gray_with_alpha() -> None:
    data = encode(Image.fromarray(np.dstack([GRAY, ALPHA])), "PNG")
    assert Image.open(BytesIO(data)).mode == "LA"
    assert_pixels(data, over_black(three(GRAY), ALPHA), 1)


def palette_image() -> tuple[Image.Image, np.ndarray]:
    indices = (np.arange(23 * 31) % 4).reshape(23, 31).astype(np.uint8)
    colors = np.array([[255, 0, 0], [0, 255, 0], [10, 20, 30], [250, 250, 250]], np.uint8)
    image = Image.fromarray(indices)
    image.putpalette(colors.tobytes())
    return image, colors[indices]


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_palette(form: str) -> None:
    image, colors = palette_image()
    data = encode(image, form)
    assert Image.open(BytesIO(data)).mode == "P"
    assert_pixels(data, colors)


@pytest.mark.parametrize("transparency", [3, bytes([255, 255, 128, 0])])
def test_palette_with_transparency(transparency: int | bytes) -> None:
    image, colors = palette_image()
    alphas = np.array([255, 255, 255, 0] if transparency == 3 else list(transparency))
    expected = over_black(colors, alphas[np.asarray(image)])
    data = encode(image, "PNG", transparency=transparency)
    assert Image.open(BytesIO(data)).mode == "P"
    assert_pixels(data, expected, 1)


def test_palette_with_alpha_channel() -> None:
    image, colors = palette_image()
    image = image.convert("PA")
    image.putalpha(Image.fromarray(ALPHA))
    data = encode(image, "TIFF")
    assert Image.open(BytesIO(data)).mode == "PA"
    assert_pixels(data, over_black(colors, ALPHA), 1)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_color_key_transparency_of_gray_png(dtype: type) -> None:
    gray = np.array([[0, 200], [201, 255]], dtype)
    if dtype == np.uint16:
        gray *= 257
    key = int(gray[0, 1])
    expected = three(np.array([[0, 0], [201, 255]], np.uint8))
    assert_pixels(encode(Image.fromarray(gray), "PNG", transparency=key), expected)


WIDE = np.array([[0, 128, 129, 257], [32896, 65279, 65407, 65535]], np.uint16)
NARROW = np.rint(WIDE / 257).astype(np.uint8)


@pytest.mark.parametrize(("form", "dtype"), [("PNG", "<u2"), ("TIFF", "<u2"), ("TIFF", ">u2")])
def test_sixteen_bit_gray_uses_the_full_range(form: str, dtype: str) -> None:
    source = Image.frombytes(
        "I;16" if dtype == "<u2" else "I;16B", (4, 2), WIDE.astype(dtype).tobytes()
    )
    assert_pixels(encode(source, form), three(NARROW))


def test_integer_gray_tiff() -> None:
    assert_pixels(encode(Image.fromarray(WIDE.astype(np.int32)), "TIFF"), three(NARROW))


@pytest.mark.parametrize("value", [-1, 65536])
def test_integer_gray_outside_the_range_is_refused(value: int) -> None:
    values = WIDE.astype(np.int32)
    values[0, 0] = value
    with pytest.raises(ImageError, match="only 0 to 65535"):
        load_image(encode(Image.fromarray(values), "TIFF"))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[0, 0.5], [0.25, 1]], [[0, 128], [64, 255]]),
        ([[0, 0.5], [100.4, 255]], [[0, 0], [100, 255]]),
        ([[0, 0], [0, 0]], [[0, 0], [0, 0]]),
    ],
)
def test_float_tiff(values: list[list[float]], expected: list[list[int]]) -> None:
    data = encode(Image.fromarray(np.array(values, np.float32)), "TIFF")
    assert_pixels(data, three(np.array(expected, np.uint8)))


@pytest.mark.parametrize("value", [-0.1, 256, np.nan, np.inf])
def test_float_tiff_outside_the_range_is_refused(value: float) -> None:
    data = encode(Image.fromarray(np.array([[0, value]], np.float32)), "TIFF")
    with pytest.raises(ImageError, match="0 to 1 or 0 to 255"):
        load_image(data)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
def test_first_frame(form: str) -> None:
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]
    options = {"lossless": True} if form == "WEBP" else {}
    data = encode(frames[0], form, save_all=True, append_images=frames[1:], **options)
    assert Image.open(BytesIO(data)).n_frames == 2
    assert_pixels(data, np.array(frames[0]))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(form: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"lossless": True} if form == "WEBP" else {}
    data = encode(Image.fromarray(COLOR), form, exif=exif, **options)
    expected = np.array(ImageOps.exif_transpose(Image.open(BytesIO(data))))
    assert expected.shape == ((31, 23, 3) if orientation > 4 else (23, 31, 3))
    assert_pixels(data, expected)
    path = tmp_path / "turned"
    path.write_bytes(data)
    found = probe_image(path)
    assert (found.height, found.width) == expected.shape[:2]


def test_damaged_exif_does_not_matter() -> None:
    data = encode(Image.fromarray(COLOR), "PNG", exif=b"Exif\0\0nonsense")
    assert_pixels(data, COLOR)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "BMP", "WEBP"])
def test_truncated_at_every_offset(form: str) -> None:
    data = encode(Image.fromarray(COLOR), form)
    refused: list[str] = []
    for length in range(len(data)):
        try:
            assert load_image(data[:length]).shape == COLOR.shape
        except ImageError as error:
            refused.append(str(error))
    assert len(refused) > 0.5 * len(data)
    assert not any("\n" in message for message in refused)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "BMP", "WEBP"])
def test_damaged_bytes_never_raise_anything_else(form: str) -> None:
    data = encode(Image.fromarray(COLOR), form)
    refused: list[str] = []
    for _ in range(300):
        damaged = bytearray(data)
        for offset in RNG.integers(0, len(data), 4):
            damaged[offset] = RNG.integers(0, 256)
        try:
            assert load_image(bytes(damaged)).dtype == np.uint8
        except ImageError as error:
            refused.append(str(error))
    assert not any("\n" in message for message in refused)


def test_errors_keep_their_cause() -> None:
    data = encode(Image.fromarray(COLOR), "PNG")
    with pytest.raises(ImageError, match="damaged or cut off") as caught:
        load_image(data[:200])
    assert caught.value.__cause__ is not None


def png_header(width: int, height: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + body))
        return struct.pack(">I", len(body)) + name + body + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_decompression_bomb_is_refused_from_its_header() -> None:
    with pytest.raises(ImageError, match="60000 x 60000 pixels, more than the 178000000"):
        load_image(png_header(60_000, 60_000))


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_large_image_below_the_limit_loads_without_warning(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encode(Image.new("L", (120, 100)), form)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9_000)  # warns above, raises above twice it
    with warnings.catch_warnings(record=True) as leaked:
        warnings.simplefilter("always")
        assert load_image(data).shape == (100, 120, 3)
    assert leaked == []


@pytest.mark.parametrize("data", [b"P8 2 2 1 ", b"%PDF-1.7", b"x", b"path,label\n"])
def test_other_formats_are_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match="not a PNG, JPEG, BMP, TIFF, WebP, GIF or netpbm file"):
        load_image(data)


def test_what_is_no_readable_file(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "broken.png").symlink_to("nowhere.png")
    faults = {
        "empty.png": "empty",
        "folder.png": "is a folder",
        "pipe.png": "is a pipe",
        "loop.png": "cannot be read",
        "broken.png": "does not exist",
        "absent.png": "does not exist",
        "nul\0.png": "cannot be read",
        "x" * 300 + ".png": "cannot be read",
        "two\nlines.png": "does not exist",
        "latin\udce9.png": "does not exist",
    }
    for name, fault in faults.items():
        for function in (load_image, probe_image, load_mask):
            with pytest.raises(ImageError, match=fault) as caught:
                function(tmp_path / name)
            assert "\n" not in str(caught.value)
            str(caught.value).encode()
    with pytest.raises(ImageError, match="device"):
        load_image("/dev/zero")


def test_permission_denied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "a.png"
    path.write_bytes(encode(Image.fromarray(COLOR), "PNG"))
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ImageError, match="may not be read by this user") as caught:
        load_image(path)
    assert isinstance(caught.value.__cause__, PermissionError)


def test_huge_file_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_module, "MAX_FILE_BYTES", 100)
    (tmp_path / "a.png").write_bytes(bytes(101))
    with pytest.raises(ImageError, match="101 bytes, more than the 100"):
        load_image(tmp_path / "a.png")


def test_probe_and_read_share_one_fingerprint(tmp_path: Path) -> None:
    data = encode(Image.fromarray(COLOR), "PNG")
    path = tmp_path / "a.png"
    path.write_bytes(data)
    found, pixels = read_image(path)
    assert found == probe_image(str(path))
    assert found.path == path
    assert found.sha256 == hashlib.sha256(data).hexdigest()
    assert (found.num_bytes, found.width, found.height) == (len(data), 31, 23)
    assert np.array_equal(pixels, COLOR)
    path.write_bytes(data[:-40])
    with pytest.raises(ImageError, match="cut off"):
        probe_image(path)


def test_mask_threshold_and_size(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    Image.fromarray(np.array([[0, 127, 128], [129, 255, 1]], np.uint8)).save(path)
    mask = load_mask(path, (2, 3))
    assert mask.dtype == np.bool_
    assert mask.tolist() == [[False, False, True], [True, True, False]]
    with pytest.raises(ImageError, match="has 2 rows and 3 columns, its image 3 and 2"):
        load_mask(path, (3, 2))


def test_mask_modes(tmp_path: Path) -> None:
    defective = np.array([[False, True], [True, False]])
    colored = np.zeros((2, 2, 3), np.uint8)
    colored[defective] = (255, 0, 0)
    wide = defective.astype(np.uint16) * 65535
    for number, values in enumerate((defective, colored, wide)):
        path = tmp_path / f"{number}.png"
        Image.fromarray(values).save(path)
        assert np.array_equal(load_mask(path), defective)


def test_suffixes() -> None:
    assert {".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".tif", ".webp", ".gif"} < IMAGE_SUFFIXES
