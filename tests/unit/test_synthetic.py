from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pgdefect.core.errors import DatasetError
from tests.synthetic import DEFECT_TYPES, defective_part, normal_part, write_dataset

SMALL = (96, 96)


@pytest.mark.parametrize("texture", ["brushed", "woven"])
def test_a_seed_fixes_the_part(texture: str) -> None:
    first, mask = normal_part(7, texture=texture)
    again, _ = normal_part(7, texture=texture)
    other, _ = normal_part(8, texture=texture)
    assert first.dtype == np.uint8
    assert first.shape == (256, 256, 3)
    assert mask.shape == (256, 256)
    assert not mask.any()
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("texture", ["brushed", "woven"])
@pytest.mark.parametrize("kind", DEFECT_TYPES)
def test_the_mask_is_where_a_part_differs_from_its_normal_twin(kind: str, texture: str) -> None:
    for seed in range(6):
        image, mask = defective_part(seed, kind, (128, 128), texture=texture)
        twin, _ = normal_part(seed, (128, 128), texture=texture)
        differs = (image != twin).any(axis=2)
        assert mask.any()
        assert mask.mean() < 0.12
        assert not (differs & ~mask).any()
        assert differs[mask].mean() > 0.9
        assert np.abs(image.astype(int) - twin)[mask].mean() > 6


@pytest.mark.parametrize("kind", DEFECT_TYPES)
def test_a_defect_is_determined_by_its_seed(kind: str) -> None:
    image, mask = defective_part(3, kind, SMALL)
    again, mask_again = defective_part(3, kind, SMALL)
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(mask, mask_again)
    _, elsewhere = defective_part(4, kind, SMALL)
    assert (mask != elsewhere).any()


def test_normal_parts_vary_mildly() -> None:
    parts = np.stack([normal_part(seed, SMALL)[0] for seed in range(12)]).astype(float)
    brightness = parts.mean(axis=(1, 2, 3))
    assert 0.5 < brightness.std() < 12
    assert parts.std(axis=0).mean() < 25


@pytest.mark.parametrize("size", [(64, 64), (64, 300), (300, 64), (97, 131)])
@pytest.mark.parametrize("kind", DEFECT_TYPES)
def test_other_sizes(size: tuple[int, int], kind: str) -> None:
    for seed in range(3):
        image, mask = defective_part(seed, kind, size)
        assert image.shape == (*size, 3)
        assert mask.shape == size
        assert mask.any()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 64"):
        normal_part(0, (63, 200))
    with pytest.raises(ValueError, match="unknown defect type 'dent'"):
        defective_part(0, "dent")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown texture 'wood'"):
        normal_part(0, texture="wood")  # type: ignore[arg-type]


def written(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_a_dataset_has_mvtec_layout(tmp_path: Path) -> None:
    root = write_dataset(
        tmp_path / "plate", num_train=3, num_test_normal=2, num_per_defect=2, seed=5, size=SMALL
    )
    files = written(root)
    expected = {f"train/good/{i:03d}.png" for i in range(3)}
    expected |= {f"test/good/{i:03d}.png" for i in range(2)}
    for kind in DEFECT_TYPES:
        expected |= {f"test/{kind}/{i:03d}.png" for i in range(2)}
        expected |= {f"ground_truth/{kind}/{i:03d}_mask.png" for i in range(2)}
    assert set(files) == expected
    images = [data for name, data in files.items() if not name.startswith("ground_truth")]
    assert len(set(images)) == len(images)
    for name in files:
        with Image.open(root / name) as picture:
            assert picture.size == (96, 96)
            pixels = np.asarray(picture)
        if name.startswith("ground_truth"):
            assert pixels.ndim == 2
            assert set(np.unique(pixels)) == {0, 255}
        else:
            assert pixels.shape == (96, 96, 3)


def test_a_dataset_is_determined_by_its_seed(tmp_path: Path) -> None:
    counts = {"num_train": 1, "num_test_normal": 1, "num_per_defect": 1, "size": SMALL}
    first = written(write_dataset(tmp_path / "a", seed=1, **counts))
    again = written(write_dataset(tmp_path / "b", seed=1, **counts))
    other = written(write_dataset(tmp_path / "c", seed=2, **counts))
    assert first == again
    assert all(first[name] != other[name] for name in first)


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DatasetError, match="not an empty folder"):
        write_dataset(tmp_path, num_train=1, num_test_normal=1, num_per_defect=1, size=SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
