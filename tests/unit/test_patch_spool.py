"""Training's scratch arrays: right values, bounded, never left behind."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from pgdefect.errors import TrainingError
from pgdefect.vision import patch_spool
from pgdefect.vision.patch_spool import PatchSpool

IMAGES = np.random.default_rng(0).standard_normal((5, 2, 3, 4)).astype(np.float32)


@pytest.mark.parametrize(("precision", "dtype"), [("half", np.float16), ("single", np.float32)])
def test_gives_back_what_was_appended(tmp_path: Path, precision: str, dtype: type) -> None:
    with PatchSpool(tmp_path, precision) as spool:  # type: ignore[arg-type]
        spool.allocate(8, (2, 3, 4))
        spool.append(IMAGES[:2])
        spool.append(IMAGES[2:])
        assert spool.patches.shape == (5, 2, 3, 4)
        np.testing.assert_array_equal(spool.patches, IMAGES.astype(dtype))
        assert any(tmp_path.iterdir())
    assert not any(tmp_path.iterdir())


def test_leaves_nothing_when_interrupted(tmp_path: Path) -> None:
    def interrupted() -> None:
        with PatchSpool(tmp_path, "half") as spool:
            spool.allocate(1, (2, 3, 4))
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
        spool.allocate(1, (2, 3, 4))
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
        spool.allocate(100, (32, 32, 152))
