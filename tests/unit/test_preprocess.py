from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from PIL import Image

from pgdefect.core.errors import ImageError, UsageError
from pgdefect.core.types import ExtractorSpec
from pgdefect.vision.images import preprocess
from pgdefect.vision.images.image import ImageFile, load_image, read_image
from pgdefect.vision.images.local_contrast import local_contrast
from pgdefect.vision.images.preprocess import Preprocessing, batches

RNG = np.random.default_rng(11)
MAGNETIC_TILE = Path(__file__).parents[3] / "shared" / "data" / "magnetic_tile"


def random_image(height: int, width: int) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


def reference(image: np.ndarray, settings: Preprocessing) -> np.ndarray:
    height, width = settings.image_size
    method = getattr(Image.Resampling, settings.interpolation.upper())
    pixels = np.asarray(Image.fromarray(image).resize((width, height), method)) / 255
    if settings.center_crop is not None:
        crop_height, crop_width = settings.center_crop
        top, left = (height - crop_height) // 2, (width - crop_width) // 2
        pixels = pixels[top : top + crop_height, left : left + crop_width]
    return ((pixels - settings.mean) / settings.std).transpose(2, 0, 1)


SETTINGS = [
    Preprocessing(),
    Preprocessing(image_size=(64, 96), center_crop=(33, 64)),
    Preprocessing((48, 40), (48, 40), (0.5, 0.4, 0.3), (0.5, 0.25, 1.0), "bicubic"),
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("size", [(1, 1), (17, 300), (64, 96), (500, 400)])
def test_apply_equals_pillow_and_numpy(settings: Preprocessing, size: tuple[int, int]) -> None:
    image = random_image(*size)
    prepared = settings.apply(image)
    assert prepared.dtype == np.float32
    assert prepared.shape == (3, *settings.input_size)
    assert prepared.flags.c_contiguous
    np.testing.assert_allclose(prepared, reference(image, settings), atol=1e-5)


def test_apply_writes_into_out() -> None:
    settings = SETTINGS[1]
    image = random_image(70, 50)
    batch = np.full((2, 3, 33, 64), np.nan, np.float32)
    assert settings.apply(image, out=batch[1]) is not None
    assert np.array_equal(batch[1], settings.apply(image))
    assert np.isnan(batch[0]).all()


@pytest.mark.parametrize(
    "image",
    [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3)), np.zeros((0, 8, 3), np.uint8)],
)
def test_apply_rejects_other_arrays(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8"):
        Preprocessing().apply(image)


def test_apply_rejects_a_wrong_out() -> None:
    with pytest.raises(ValueError, match="out must be float32"):
        Preprocessing().apply(random_image(8, 8), out=np.zeros((3, 256, 255), np.float32))


@pytest.mark.parametrize("settings", SETTINGS)
def test_dict_round_trip(settings: Preprocessing) -> None:
    restored = Preprocessing.from_dict(json.loads(json.dumps(settings.to_dict())))
    assert restored == settings
    assert hash(restored) == hash(settings)
    assert restored.to_dict() == settings.to_dict()


def test_from_dict_rejects_unknown_and_missing_keys() -> None:
    settings = Preprocessing().to_dict()
    with pytest.raises(UsageError, match=r"unknown \['crop_pct'\]"):
        Preprocessing.from_dict(settings | {"crop_pct": 0.9})
    del settings["mean"]
    with pytest.raises(UsageError, match=r"missing \['mean'\]"):
        Preprocessing.from_dict(settings)


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"image_size": (31, 256)}, "image_size must be"),
        ({"image_size": (256,)}, "image_size must be"),
        ({"image_size": 256}, "image_size must be"),
        ({"image_size": (256.0, 256)}, "image_size must be"),
        ({"image_size": (True, 256)}, "image_size must be"),
        ({"center_crop": (16, 16)}, "center_crop must be"),
        ({"center_crop": (257, 224)}, "larger than image_size"),
        ({"center_crop": (224, 257)}, "larger than image_size"),
        ({"mean": (0.5, 0.5)}, "mean must be"),
        ({"mean": (0.5, 0.5, float("nan"))}, "mean must be"),
        ({"std": (0.5, 0.5, "1")}, "std must be"),
        ({"std": (0.5, 0.5, 0)}, "std must be above 0"),
        ({"interpolation": "lanczos"}, "Unknown interpolation 'lanczos'"),
        ({"resize": "crop"}, "Unknown resize 'crop'.*keep, stretch"),
        ({"resize": None}, "Unknown resize None"),
        ({"resize": "keep", "center_crop": (64, 64)}, "center crop.*resize stretch"),
        ({"local_contrast": 0.0}, "local_contrast must be a number from 0.01 to 1, not 0.0"),
        ({"local_contrast": -0.1}, "local_contrast must be"),
        ({"local_contrast": 2}, "local_contrast must be a number from 0.01 to 1, not 2"),
        (
            {"local_contrast": float("nan")},
            "local_contrast must be a number from 0.01 to 1, not nan",
        ),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, object], fault: str) -> None:
    with pytest.raises(UsageError, match=fault):
        Preprocessing(**settings)


def test_input_size() -> None:
    assert Preprocessing(image_size=(64, 96)).input_size == (64, 96)
    assert Preprocessing((64, 96), (32, 48)).input_size == (32, 48)


def test_grid_cells_by_hand() -> None:
    whole = Preprocessing()
    assert whole.grid_to_pixels(0, 0, (32, 32), (256, 256)) == (0, 0, 8, 8)
    assert whole.grid_to_pixels(31, 2, (32, 32), (512, 256)) == (16, 496, 8, 16)
    cropped = Preprocessing(image_size=(256, 256), center_crop=(224, 192))
    # The crop starts 16 rows and 32 columns in; the original is twice as large.
    assert cropped.grid_to_pixels(0, 0, (28, 24), (512, 512)) == (64, 32, 16, 16)
    assert cropped.grid_to_pixels(27, 23, (28, 24), (512, 512)) == (432, 464, 16, 16)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("original", [(331, 217), (100, 1000)])
def test_grid_cells_tile_the_crop(settings: Preprocessing, original: tuple[int, int]) -> None:
    grid = (9, 13)
    covered = np.zeros(original, int)
    for row in range(grid[0]):
        for col in range(grid[1]):
            x, y, width, height = settings.grid_to_pixels(row, col, grid, original)
            covered[y : y + height, x : x + width] += 1
    assert covered.max() == 1
    rows, cols = np.flatnonzero(covered.any(axis=1)), np.flatnonzero(covered.any(axis=0))
    assert covered.sum() == rows.size * cols.size
    for seen, axis in ((rows, 0), (cols, 1)):
        share = settings.input_size[axis] / settings.image_size[axis]
        assert abs(seen.size - share * original[axis]) <= 1


def test_grid_cells_of_a_tiny_image_stay_inside() -> None:
    for row in range(32):
        x, y, width, height = Preprocessing().grid_to_pixels(row, 31, (32, 32), (5, 1))
        assert (x, width) == (0, 1)
        assert 0 <= y < y + height <= 5


@pytest.mark.parametrize("cell", [(-1, 0), (0, -1), (32, 0), (0, 32)])
def test_grid_cell_outside(cell: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="no cell"):
        Preprocessing().grid_to_pixels(*cell, (32, 32), (256, 256))


@pytest.mark.parametrize(
    ("grid", "original"),
    [((32, 32), (256, 256)), ((7, 9), (100, 33)), ((64, 64), (30, 100)), ((1, 1), (5, 4))],
)
def test_map_to_original_equals_pillow(grid: tuple[int, int], original: tuple[int, int]) -> None:
    anomaly_map = RNG.random(grid, dtype=np.float32)
    expected = Image.fromarray(anomaly_map).resize(original[::-1], Image.Resampling.BILINEAR)
    laid_over = Preprocessing().map_to_original(anomaly_map, original)
    assert laid_over.dtype == np.float32
    np.testing.assert_allclose(laid_over, np.asarray(expected), atol=1e-5)


def test_map_to_original_is_zero_outside_the_crop() -> None:
    settings = Preprocessing(image_size=(256, 256), center_crop=(224, 192))
    laid_over = settings.map_to_original(np.ones((28, 24)), (512, 256))
    inside = np.zeros((512, 256), bool)
    inside[32:480, 32:224] = True
    np.testing.assert_allclose(laid_over[inside], 1, rtol=1e-6)
    assert (laid_over[~inside] == 0).all()


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_peak_of_the_map_lies_in_its_grid_cell(settings: Preprocessing) -> None:
    anomaly_map = np.zeros((8, 8))
    anomaly_map[5, 2] = 1
    original = (400, 300)
    laid_over = settings.map_to_original(anomaly_map, original)
    y, x = np.unravel_index(laid_over.argmax(), original)
    left, top, width, height = settings.grid_to_pixels(5, 2, (8, 8), original)
    assert left <= x < left + width
    assert top <= y < top + height


def test_map_must_have_two_axes() -> None:
    with pytest.raises(ValueError, match="rows, cols"):
        Preprocessing().map_to_original(np.zeros((1, 8, 8)), (64, 64))


SMALL = Preprocessing(image_size=(32, 32))


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{index:02}.png" for index in range(23)]
    for path in paths:
        Image.fromarray(random_image(40, 50)).save(path)
    return paths


def no_error(index: int, error: ImageError) -> None:
    raise AssertionError((index, error))


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 5, 23, 100])
def test_batches_are_in_order(files: list[Path], batch_size: int, num_threads: int) -> None:
    seen: list[int] = []
    for indices, inputs, _ in batches(
        files, SMALL, batch_size, num_threads=num_threads, on_error=no_error
    ):
        assert inputs.shape == (len(indices), 3, 32, 32)
        assert inputs.dtype == np.float32
        assert len(indices) == min(batch_size, 23 - len(seen))
        for index, prepared in zip(indices, inputs, strict=True):
            assert np.array_equal(prepared, SMALL.apply(load_image(files[index])))
        seen += indices
    assert seen == list(range(23))


def test_batches_leave_out_what_cannot_be_read(files: list[Path]) -> None:
    files[3].write_bytes(files[3].read_bytes()[:100])
    files[4].unlink()
    files[22].write_bytes(b"")
    errors: dict[int, ImageError] = {}
    found = list(batches(files, SMALL, 4, num_threads=2, on_error=errors.__setitem__))
    assert list(errors) == [3, 4, 22]
    assert all(str(files[index]) in str(error) for index, error in errors.items())
    assert [indices for indices, _, _ in found][:2] == [[0, 1, 2, 5], [6, 7, 8, 9]]
    assert [len(indices) for indices, _, _ in found] == [4] * 5
    assert [i for indices, _, _ in found for i in indices] == [
        i for i in range(23) if i not in errors
    ]


def test_batches_of_only_bad_files_and_of_none(tmp_path: Path) -> None:
    errors: list[int] = []
    missing = [tmp_path / "a.png", tmp_path / "b.png"]

    def note(index: int, _: ImageError) -> None:
        errors.append(index)

    assert list(batches(missing, SMALL, 4, num_threads=2, on_error=note)) == []
    assert errors == [0, 1]
    assert list(batches([], SMALL, 4, num_threads=2, on_error=no_error)) == []


def image_threads() -> list[str]:
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith("pgdefect-images")]


def test_batches_close_early(files: list[Path]) -> None:
    stream = batches(files * 50, SMALL, 4, num_threads=2, on_error=no_error)
    next(stream)
    assert image_threads()
    started = time.monotonic()
    stream.close()  # type: ignore[attr-defined]
    assert image_threads() == []
    assert time.monotonic() - started < 5


def test_batches_stop_when_on_error_raises(files: list[Path]) -> None:
    files[2].unlink()
    with pytest.raises(AssertionError):
        list(batches(files, SMALL, 4, num_threads=2, on_error=no_error))
    assert image_threads() == []


def test_batches_run_at_most_two_batches_ahead(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[object] = []

    def counting(path: Path, *options: object) -> tuple[ImageFile, np.ndarray]:
        decoded.append(path)
        return read_image(path, *options)  # type: ignore[arg-type]

    monkeypatch.setattr(preprocess, "read_image", counting)
    taken: list[Path] = []

    def paths() -> Iterator[Path]:
        for path in files * 4:
            taken.append(path)
            yield path

    stream = batches(paths(), SMALL, 4, num_threads=2, on_error=no_error)
    for number in range(1, 4):
        next(stream)
        deadline = time.monotonic() + 5
        while len(decoded) < 4 * (number + 2) and time.monotonic() < deadline:
            time.sleep(0.005)
        assert len(taken) == len(decoded) == 4 * (number + 2)
    stream.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("batch_size", "num_threads"), [(0, 1), (1, 0)])
def test_batches_reject_bad_counts_at_once(batch_size: int, num_threads: int) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        batches([], SMALL, batch_size, num_threads=num_threads, on_error=no_error)


# -- the aspect ratio kept, the light evened out -------------------------------------------

SIDES = st.integers(1, 3000)
KEEPS = st.builds(
    Preprocessing,
    image_size=st.tuples(st.integers(64, 600), st.integers(64, 600)),
    resize=st.just("keep"),
)


@given(KEEPS, st.tuples(SIDES, SIDES))
@example(Preprocessing((256, 256), resize="keep"), (1, 3000))
@example(Preprocessing((600, 600), resize="keep"), (3000, 1))
def test_kept_sides_are_multiples_near_the_area_and_aspect(
    settings: Preprocessing, original: tuple[int, int]
) -> None:
    sides = settings.input_size_of(original)
    assert all(side % 16 == 0 and 64 <= side <= 4096 for side in sides)
    scale = math.sqrt(math.prod(settings.image_size) / math.prod(original))
    ideal = [side * scale for side in original]
    assert math.prod(ideal) == pytest.approx(math.prod(settings.image_size))
    for side, wanted in zip(sides, ideal, strict=True):
        assert abs(side - min(max(wanted, 64), 4096)) <= 8 + 1e-6
    assume(min(ideal) >= 64 and max(ideal) <= 4096)
    (height, width), (ideal_height, ideal_width) = sides, ideal
    slack = (1 + 8 / ideal_height) * (1 + 8 / ideal_width) + 1e-9
    assert 2 - slack <= height * width / math.prod(settings.image_size) <= slack
    aspect = (height / width) / (ideal_height / ideal_width)
    assert abs(math.log(aspect)) <= -math.log((1 - 8 / ideal_height) * (1 - 8 / ideal_width))


@given(st.integers(4, 40), st.integers(1, 3000))
def test_a_square_image_is_kept_at_a_square_image_size(multiple: int, side: int) -> None:
    size = (16 * multiple, 16 * multiple)
    settings = Preprocessing(size, resize="keep")
    assert settings.input_size == settings.input_size_of((side, side)) == size


def test_kept_sizes_by_hand() -> None:
    settings = Preprocessing((256, 256), resize="keep")
    assert settings.input_size_of((512, 512)) == (256, 256)
    assert settings.input_size_of((100, 400)) == (128, 512)
    assert settings.input_size_of((400, 100)) == (512, 128)
    assert settings.input_size_of((256, 4096)) == (64, 1024)
    strips = replace(settings, least_side=128)
    assert strips.input_size_of((256, 4096)) == (128, 2048)
    assert strips.input_size_of((4096, 256)) == (2048, 128)
    assert strips.input_size_of((80, 1600)) == (80, 1600)  # not made larger than it is
    assert strips.input_size_of((512, 512)) == (256, 256)
    assert Preprocessing.from_dict(strips.to_dict()) == strips
    assert "least_side" not in settings.to_dict()
    assert settings.input_size_of((1920, 1080)) == (336, 192)
    # A very long image is squeezed: no side below 64 or above 4096.
    assert settings.input_size_of((1, 10_000)) == (64, 4096)
    assert Preprocessing((128, 512), resize="keep").input_size_of((300, 300)) == (256, 256)
    assert Preprocessing((32, 32), resize="keep").input_size == (64, 64)
    # Stretched, every image has one size.
    assert Preprocessing((64, 96)).input_size_of((1, 10_000)) == (64, 96)


@pytest.mark.parametrize("fraction", [None, 0.1, 1.0])
@pytest.mark.parametrize("size", [(1, 1), (17, 300), (64, 96), (500, 400)])
@pytest.mark.parametrize("resize", ["keep", "stretch"])
def test_apply_with_the_later_settings(
    resize: str, size: tuple[int, int], fraction: float | None
) -> None:
    settings = Preprocessing((96, 80), resize=resize, local_contrast=fraction)
    for image in (random_image(*size), np.repeat(random_image(*size)[..., :1], 3, axis=2)):
        prepared = settings.apply(image)
        height, width = settings.input_size_of(size)
        assert prepared.dtype == np.float32
        assert prepared.shape == (3, height, width)
        pixels = np.asarray(
            Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        )
        values = pixels / 255 if fraction is None else local_contrast(pixels, fraction)
        expected = ((values - settings.mean) / settings.std).transpose(2, 0, 1)
        np.testing.assert_allclose(prepared, expected, atol=1e-5)
        out = np.full((2, 3, height, width), np.nan, np.float32)
        settings.apply(image, out=out[1])
        np.testing.assert_array_equal(out[1], prepared)
        assert np.isnan(out[0]).all()


def test_local_contrast_sees_only_the_crop() -> None:
    settings = Preprocessing((64, 96), (33, 64), local_contrast=0.1)
    image = random_image(64, 96)
    image[:10] = 255
    pixels = image[15:48, 16:80]
    expected = (local_contrast(pixels, 0.1) - settings.mean) / settings.std
    np.testing.assert_allclose(settings.apply(image), expected.transpose(2, 0, 1), atol=1e-5)


OLD_SETTINGS = {
    "image_size": [256, 256],
    "center_crop": None,
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "interpolation": "bilinear",
}
"""As stored before there were `resize` and `local_contrast`."""
OLD_FINGERPRINT = "b77e4461b47f25e776dac2404afe75deac7ce3d2f4324811fb162e0eb0012677"


def fingerprint(settings: Preprocessing) -> str:
    layers = ("blocks.2", "blocks.4")
    return ExtractorSpec(
        "efficientnet_lite0", layers, settings.to_dict(), "x", "0" * 64
    ).fingerprint


def test_extractors_stored_before_keep_their_meaning_and_fingerprint() -> None:
    settings = Preprocessing.from_dict(OLD_SETTINGS)
    assert (settings.resize, settings.local_contrast) == ("stretch", None)
    assert settings == Preprocessing()
    assert settings.to_dict() == OLD_SETTINGS
    assert fingerprint(settings) == OLD_FINGERPRINT
    assert Preprocessing.from_dict(OLD_SETTINGS | preprocess.LATER) == settings


def test_the_later_settings_are_stored_where_they_change_something() -> None:
    later = [
        Preprocessing(resize="keep"),
        Preprocessing(local_contrast=0.1),
        Preprocessing(local_contrast=0.2),
        Preprocessing(resize="keep", local_contrast=0.1),
    ]
    for settings in later:
        stored = json.loads(json.dumps(settings.to_dict()))
        assert Preprocessing.from_dict(stored) == settings
    assert later[0].to_dict() == OLD_SETTINGS | {"resize": "keep"}
    assert later[1].to_dict() == OLD_SETTINGS | {"local_contrast": 0.1}
    fingerprints = {fingerprint(settings) for settings in later}
    assert len(fingerprints) == 4
    assert OLD_FINGERPRINT not in fingerprints


@given(KEEPS, st.tuples(st.integers(1, 700), st.integers(1, 700)), st.sampled_from([8, 16]))
def test_kept_grids_tile_the_image(
    settings: Preprocessing, original: tuple[int, int], patch: int
) -> None:
    height, width = settings.input_size_of(original)
    rows, cols = grid = height // patch, width // patch
    assume(rows <= original[0] and cols <= original[1])
    # Rows and columns are independent: the first of each shows them all.
    for axis, cells, length in ((0, rows, original[0]), (1, cols, original[1])):
        borders = [0]
        for cell in range(cells):
            place = (cell, cols - 1) if axis == 0 else (rows - 1, cell)
            x, y, box_width, box_height = settings.grid_to_pixels(*place, grid, original)
            start, size = (y, box_height) if axis == 0 else (x, box_width)
            assert start == borders[-1]
            assert size >= 1
            borders.append(start + size)
        assert borders[-1] == length
        # To whole pixels, as even as can be.
        assert np.abs(np.diff(borders) - length / cells).max() <= 1


@given(KEEPS, st.tuples(st.integers(1, 300), st.integers(1, 300)), st.randoms())
def test_kept_maps_cover_the_image(
    settings: Preprocessing, original: tuple[int, int], random: Any
) -> None:
    height, width = settings.input_size_of(original)
    rows, cols = height // 16, width // 16
    ones = settings.map_to_original(np.ones((rows, cols)), original)
    np.testing.assert_allclose(ones, 1, rtol=1e-5)
    assert ones.shape == original
    assume(rows <= original[0] and cols <= original[1])
    row, col = random.randrange(rows), random.randrange(cols)
    anomaly_map = np.zeros((rows, cols))
    anomaly_map[row, col] = 1
    laid_over = settings.map_to_original(anomaly_map, original)
    left, top, box_width, box_height = settings.grid_to_pixels(row, col, (rows, cols), original)
    inside = laid_over[top : top + box_height, left : left + box_width]
    assert inside.max() == pytest.approx(laid_over.max())


KEEP = Preprocessing(image_size=(64, 64), resize="keep", local_contrast=0.2)
MIXED = [(40, 40), (40, 40), (20, 80), (41, 40), (80, 20), (80, 21), (80, 20), (300, 10)]


@given(
    kinds=st.lists(st.sampled_from([*range(len(MIXED)), None]), max_size=30),
    batch_size=st.integers(1, 7),
    num_threads=st.integers(1, 3),
)
def test_batches_of_mixed_sizes(
    mixed_files: list[Path], kinds: list[int | None], batch_size: int, num_threads: int
) -> None:
    """Every image once and in order, errors apart; one size a batch, full where it can be."""
    paths = [mixed_files[-1 if kind is None else kind] for kind in kinds]
    errors: list[int] = []
    found = list(
        batches(
            paths,
            KEEP,
            batch_size,
            num_threads=num_threads,
            on_error=lambda index, error: errors.append(index),
        )
    )
    assert errors == [n for n, kind in enumerate(kinds) if kind is None]
    seen = [index for batch in found for index in batch.indices]
    assert seen == [n for n, kind in enumerate(kinds) if kind is not None]
    for batch in found:
        assert 1 <= len(batch.indices) == len(batch.files) == len(batch.inputs) <= batch_size
        for index, file, prepared in zip(batch.indices, batch.files, batch.inputs, strict=True):
            assert file.path == paths[index]
            assert prepared.shape[1:] == KEEP.input_size_of((file.height, file.width))
            expected = KEEP.apply(load_image(paths[index]))
            np.testing.assert_array_equal(prepared, expected)
    for batch, following in pairwise(found):
        if len(batch.indices) < batch_size:
            assert batch.inputs.shape[1:] != following.inputs.shape[1:]


@pytest.fixture(scope="module")
def mixed_files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A file of each size of MIXED, and one that is no image."""
    folder = tmp_path_factory.mktemp("mixed")
    paths = [folder / f"{n}.png" for n in range(len(MIXED) + 1)]
    for path, size in zip(paths, MIXED, strict=False):
        Image.fromarray(random_image(*size)).save(path)
    paths[-1].write_bytes(b"no image")
    return paths


@pytest.mark.skipif(not MAGNETIC_TILE.is_dir(), reason="the magnetic tile images are absent")
def test_batches_of_real_images() -> None:
    paths = sorted(MAGNETIC_TILE.glob("test/crack/*.jpg"))
    settings = Preprocessing()
    seen = 0
    for indices, inputs, _ in batches(paths, settings, 8, num_threads=2, on_error=no_error):
        expected = reference(load_image(paths[indices[0]]), settings)
        np.testing.assert_allclose(inputs[0], expected, atol=1e-5)
        seen += len(indices)
    assert seen == 57
