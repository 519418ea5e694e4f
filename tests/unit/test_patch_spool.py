"""Training's scratch arrays: right values, bounded, never left behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgdefect.core.errors import DatabaseError, TrainingError
from pgdefect.vision.patchcore import patch_spool
from pgdefect.vision.patchcore.patch_spool import PatchSpool, SpoolKey

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
        with pytest.raises(TrainingError, match="precision='single'"):
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


# -- taken up ------------------------------------------------------------------------------

KEY = SpoolKey("a1" * 32, "b2" * 32)


@contextmanager
def cut_off(
    folder: Path, error: BaseException | None = None, key: SpoolKey = KEY
) -> Iterator[PatchSpool]:
    """A spool whose training ends by an error: a lost database, unless another is given."""
    error = error or DatabaseError("lost")
    with suppress(type(error)), PatchSpool(folder, "half", key) as spool:
        spool.allocate(5 * 6, 4)
        yield spool
        raise error


def begin(folder: Path, error: BaseException | None = None) -> None:
    """A training that is cut off after two batches of two images."""
    with cut_off(folder, error) as spool:
        for n in range(len(spool.resumed), 2):
            spool.append(IMAGES[2 * n : 2 * n + 2], {"batch": n})


def resumed(folder: Path, key: SpoolKey = KEY) -> list[int]:
    """What another with the key finds there, with the patches as they were appended."""
    with cut_off(folder, key=key) as spool:
        found = [entry["batch"] for entry in spool.resumed]
        assert spool.grids == [(2, 3)] * (2 * len(found))
        np.testing.assert_array_equal(
            spool.patches_of(0, 2 * len(found)),
            IMAGES[: 2 * len(found)].astype(np.float16).reshape(-1, 4),
        )
    return found


def test_a_spool_that_lost_the_database_is_taken_up(tmp_path: Path) -> None:
    begin(tmp_path)
    with PatchSpool(tmp_path, "half", KEY) as spool:
        spool.allocate(5 * 6, 4)
        assert spool.resumed == [{"batch": 0}, {"batch": 1}]
        spool.append(IMAGES[4:], {"batch": 2})
        np.testing.assert_array_equal(
            spool.patches_of(0, 5), IMAGES.astype(np.float16).reshape(30, 4)
        )
        assert [part.tolist() for part in spool.cells(np.array([0, 17, 29]))] == [
            [0, 2, 4],
            [0, 1, 1],
            [0, 2, 2],
        ]
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt(), TrainingError("x"), ValueError("x")])
def test_other_ends_leave_nothing(tmp_path: Path, error: BaseException) -> None:
    begin(tmp_path, error)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("lost", range(1, 60, 7))
def test_a_torn_journal_is_good_up_to_the_batch_before(tmp_path: Path, lost: int) -> None:
    begin(tmp_path)
    [spool] = tmp_path.iterdir()
    journal = spool / "batches"
    whole = journal.read_bytes()
    last = len(whole.splitlines(keepends=True)[1])
    journal.write_bytes(whole[: len(whole) - min(lost, last)])
    assert resumed(tmp_path) == [0]
    # What was torn is cut off: the next batch is not written behind it.
    begin(tmp_path)
    assert journal.read_bytes() == whole
    assert resumed(tmp_path) == [0, 1]


def test_patches_that_a_power_cut_lost_are_not_taken_up(tmp_path: Path) -> None:
    begin(tmp_path)
    [spool] = tmp_path.iterdir()
    with (spool / "patches").open("r+b") as file:
        file.seek(2 * 6 * 4 * 2)
        file.write(bytes(48))
    assert resumed(tmp_path) == [0]


@pytest.mark.parametrize("size", [0, 100])
def test_a_spool_of_another_size_is_begun_again(tmp_path: Path, size: int) -> None:
    begin(tmp_path)
    [spool] = tmp_path.iterdir()
    with (spool / "patches").open("r+b") as file:
        file.truncate(size)
    assert resumed(tmp_path) == []


def test_a_stale_spool_goes_and_that_of_another_subject_stays(tmp_path: Path) -> None:
    begin(tmp_path)
    other = SpoolKey("c3" * 32, KEY.content)
    assert resumed(tmp_path, other) == []
    assert {p.name for p in tmp_path.iterdir()} == {KEY.folder_name, other.folder_name}
    with PatchSpool(tmp_path, "half", SpoolKey(KEY.subject, "d4" * 32)):
        pass
    assert {p.name for p in tmp_path.iterdir()} == {other.folder_name}


def test_an_old_spool_goes_with_any_training(tmp_path: Path) -> None:
    begin(tmp_path)
    [spool] = tmp_path.iterdir()
    days = 86_400 * patch_spool.KEPT_DAYS
    for age, stays in ((days - 600, True), (days + 600, False)):
        then = (spool / "batches").stat().st_ctime - age
        os.utime(spool / "batches", (then, then))
        with PatchSpool(tmp_path, "half"):
            pass
        assert spool.exists() == stays


def test_two_trainings_do_not_share_a_spool(tmp_path: Path) -> None:
    begin(tmp_path)
    with PatchSpool(tmp_path, "half", KEY) as first, PatchSpool(tmp_path, "half", KEY) as second:
        for spool, batches in ((first, 2), (second, 0)):
            spool.allocate(5 * 6, 4)
            assert len(spool.resumed) == batches
        second.append(IMAGES[1:3])
        np.testing.assert_array_equal(
            first.patches_of(0, 2), IMAGES[:2].astype(np.float16).reshape(-1, 4)
        )
    assert not any(tmp_path.iterdir())


def test_leftovers_make_room_for_a_living_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(tmp_path)
    [left] = tmp_path.iterdir()

    def usage(path: Path) -> object:
        return type("Usage", (), {"free": 100 if left.exists() else 1 << 30})()

    monkeypatch.setattr(patch_spool.shutil, "disk_usage", usage)
    with PatchSpool(tmp_path, "half") as spool:
        assert left.exists()
        spool.allocate(100, 4)
        assert not left.exists()


def test_a_disk_that_fills_meanwhile_is_an_error_and_no_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(patch_spool.os, "posix_fallocate", full)
    with (
        PatchSpool(tmp_path, "half") as spool,
        pytest.raises(TrainingError, match="PGDEFECT_CACHE_DIR"),
    ):
        spool.allocate(30, 4)
