"""What ef_search is chosen by: images of many parts, and the bank without these parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from pgdefect.core.errors import TooFewImages
from pgdefect.core.progress import silent
from pgdefect.core.types import StoredImage
from pgdefect.usecases.train.bank import (
    CALIBRATION_IMAGES,
    MAX_LEFT_OUT,
    build_bank,
    calibration_for,
    images_to_score,
)
from pgdefect.usecases.train.options import TrainOptions
from pgdefect.vision.patchcore.patch_spool import PatchSpool

GRID, DIM = (6, 5), 4


def pictures(groups: Sequence[str | None], copies: int = 0) -> list[StoredImage]:
    """Images of these groups; the last `copies` are of one file."""
    first_copy = len(groups) - copies
    return [
        StoredImage(
            *(10 + n, "c", f"{n}.png", f"{n}.png", "train", "normal", None, group, None),
            *(f"{min(n, first_copy):064x}", 1, 1),
        )
        for n, group in enumerate(groups)
    ]


@contextmanager
def filled(folder: Path, count: int) -> Iterator[PatchSpool]:
    rng = np.random.default_rng(7)
    with PatchSpool(folder, "half") as spool:
        spool.allocate(count * GRID[0] * GRID[1], DIM)
        spool.append(rng.standard_normal((count, *GRID, DIM)).astype(np.float32))
        yield spool


@pytest.mark.parametrize(
    ("groups", "copies", "most_parts", "most_images", "share"),
    [
        ([None] * 200, 0, CALIBRATION_IMAGES, CALIBRATION_IMAGES, MAX_LEFT_OUT),
        ([f"part{n // 4}" for n in range(200)], 0, 3, CALIBRATION_IMAGES, MAX_LEFT_OUT),
        # Where each part is more than allowed, one alone: the smallest, with all its images.
        ([None] * 12, 0, 1, 1, 0.12),
        (["a"] * 30 + ["b"] * 3, 0, 1, 3, 0.12),
        (["a"] * 60 + ["b"] * 40, 0, 1, CALIBRATION_IMAGES, 0.45),
        (["a"] * 60 + [None] * 60, 0, 7, CALIBRATION_IMAGES, MAX_LEFT_OUT),
        ([None] * 200, 150, CALIBRATION_IMAGES, CALIBRATION_IMAGES, MAX_LEFT_OUT),
    ],
)
def test_a_few_images_without_the_vectors_of_their_parts(
    groups: list[str | None],
    copies: int,
    most_parts: int,
    most_images: int,
    share: float,
    tmp_path: Path,
) -> None:
    images = pictures(groups, copies)
    by_id = {image.id: image for image in images}
    options = TrainOptions(coreset_ratio=0.5, pca_dim=None)
    with filled(tmp_path, len(images)) as spool:
        bank = build_bank(spool, [image.id for image in images], options, silent)
        assert bank.num_images == len(images)
        for seed in range(5):
            calibration = calibration_for(bank, spool, images, seed)
            left_out = calibration.left_out
            assert left_out is not None
            count = len(calibration.grids)
            assert 1 <= count <= most_images
            assert set(calibration.grids) == {GRID}
            parts = {by_id[i].part or by_id[i].sha256 for i in bank.image_ids[left_out]}
            others = {by_id[i].part or by_id[i].sha256 for i in bank.image_ids[~left_out]}
            assert 1 <= len(parts) <= most_parts
            assert count >= len(parts)
            assert not parts & others
            assert 0.0 < left_out.mean() <= share
            if any(groups):  # more images of the same parts leave nothing more out
                of_these = sum((image.part or image.sha256) in parts for image in images)
                assert count == min(CALIBRATION_IMAGES, of_these)
            # Brute force: the queries' distances are to the nearest of what is not left out.
            units = bank.embeddings / np.linalg.norm(bank.embeddings, axis=1, keepdims=True)
            queries = calibration.queries / np.linalg.norm(
                calibration.queries, axis=1, keepdims=True
            )
            nearest = 1 - (queries @ units[~left_out].T).max(axis=1)
            np.testing.assert_allclose(calibration.distances, nearest, atol=1e-5)
            # They are patches of the parts left out: half of these are in the bank themselves.
            own = 1 - (queries @ units[left_out].T).max(axis=1)
            assert 0.25 < (own < 1e-6).mean() < 0.75


def test_all_images_set_the_threshold_where_they_are_few() -> None:
    images = pictures([None] * 12)
    assert images_to_score(images, 1.0, 0) == {image.id for image in images}
    assert len(images_to_score(images, 0.25, 0)) == 3
    assert len(images_to_score(pictures([None] * 500), 1.0, 0)) == 200
    with pytest.raises(TooFewImages, match="one group"):
        images_to_score(pictures(["a"] * 12), 1.0, 0)
