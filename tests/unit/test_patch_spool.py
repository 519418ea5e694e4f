"""Training's scratch arrays: right values, bounded, never left behind."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgdefect.errors import TrainingError
from pgdefect.vision import patch_spool
from pgdefect.vision.patch_spool import PatchSpool

IMAGES = np.random.default_rng(0).standard_normal((5, 2, 3, 4)).astype(np.float32)


@pytest.mark.parametrize(("precision", "dtype"), [("half", np.float16), ("single", np.float32)])
def test_gives_back_what_was_appended(tmp_path: Path, precision: str, dtype: type) -> None:
    with PatchSpool(tmp_path, precision) as spool:  # type: ignore[arg-type]
        spool.allocate(8 * 6, 4)
        spool.append(IMAGES[:2])
        spool.append(IMAGES[2:])
        assert spool.grids == [(2, 3)] * 5
        patches = spool.patches_of(0, 5)
        assert patches.dtype == dtype
        np.testing.assert_array_equal(patches, IMAGES.astype(dtype).reshape(30, 4))
        np.testing.assert_array_equal(spool.patches_of(3, 4), patches[18:24])
        assert spool.patches_of(2, 2).shape == (0, 4)
        assert any(tmp_path.iterdir())
    assert not any(tmp_path.iterdir())


@given(
    appended=st.lists(
        st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=6
    )
)
def test_mixed_grids(appended: list[tuple[int, int, int]], scratch_folder: Path) -> None:
    """Images of several grids, `(count, rows, cols)` at a time: every patch knows its cell."""
    rng = np.random.default_rng(1)
    blocks = [rng.standard_normal((*shape, 3)).astype(np.float32) for shape in appended]
    cells = [
        (image, row, col)
        for image, (rows, cols) in enumerate(
            (rows, cols) for count, rows, cols in appended for _ in range(count)
        )
        for row in range(rows)
        for col in range(cols)
    ]
    with PatchSpool(scratch_folder, "single") as spool:
        spool.allocate(len(cells), 3)
        for block in blocks:
            spool.append(block)
        assert spool.grids == [(r, c) for count, r, c in appended for _ in range(count)]
        whole = spool.patches_of(0, len(spool.grids))
        flat = np.concatenate([block.reshape(-1, 3) for block in blocks])
        np.testing.assert_array_equal(whole, flat)

        images = [image for block in blocks for image in block]
        for n, image in enumerate(images):
            np.testing.assert_array_equal(spool.patches_of(n, n + 1), image.reshape(-1, 3))

        order = rng.permutation(len(cells))
        found = spool.cells(order)
        assert list(zip(*(part.tolist() for part in found), strict=True)) == [
            cells[index] for index in order
        ]
        for index, image, row, col in zip(order, *found, strict=True):
            np.testing.assert_array_equal(images[image][row, col], whole[index])
        none = spool.cells(np.empty(0, dtype=np.int64))
        assert [len(part) for part in none] == [0, 0, 0]


@pytest.fixture(scope="module")
def scratch_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spools")


def test_more_patches_than_there_is_room_for_are_refused(tmp_path: Path) -> None:
    with PatchSpool(tmp_path, "single") as spool:
        spool.allocate(20, 4)
        spool.append(IMAGES[:3])
        with pytest.raises(TrainingError, match="another size than when they were ingested"):
            spool.append(IMAGES[3:4])
        # What was there is as it was, and what fits still fits.
        assert spool.grids == [(2, 3)] * 3
        spool.append(IMAGES[3:4, :1, :2])
        np.testing.assert_array_equal(spool.patches_of(0, 3), IMAGES[:3].reshape(-1, 4))
        np.testing.assert_array_equal(spool.patches_of(3, 4), IMAGES[3, 0, :2])


def test_leaves_nothing_when_interrupted(tmp_path: Path) -> None:
    def interrupted() -> None:
        with PatchSpool(tmp_path, "half") as spool:
            spool.allocate(6, 4)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not any(tmp_path.iterdir())


def test_sweeps_what_a_killed_training_left_and_nothing_else(tmp_path: Path) -> None:
    dead = tmp_path / f"training-{2**22 + 1}-abc"
    alive = tmp_path / f"training-{os.getpid()}-abc"
    other = tmp_path / "extractors"
    for folder in (dead, alive, other):
        folder.mkdir()
    with PatchSpool(tmp_path, "half"):
        assert not dead.exists()
        assert alive.exists()
        assert other.exists()


def test_values_beyond_half_precision_are_refused(tmp_path: Path) -> None:
    with PatchSpool(tmp_path, "half") as spool:
        spool.allocate(6, 4)
        with pytest.raises(TrainingError, match="--precision single"):
            spool.append(np.full((1, 2, 3, 4), 1e6, dtype=np.float32))


def test_a_full_disk_is_told_before_it_is_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 100})()
    monkeypatch.setattr(patch_spool.shutil, "disk_usage", lambda path: usage)
    with (
        PatchSpool(tmp_path, "half") as spool,
        pytest.raises(TrainingError, match="PGDEFECT_CACHE_DIR"),
    ):
        spool.allocate(100 * 32 * 32, 152)
