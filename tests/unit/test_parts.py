"""Which photographs are of one part."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pgdefect.core.types import StoredImage
from pgdefect.usecases.common.files_seen import FilesSeen
from pgdefect.usecases.common.parts import part_numbers
from pgdefect.vision.images.dataset import scan
from pgdefect.vision.images.image import probe_image


def image(number: int, content: str, group: str | None = None) -> StoredImage:
    name = f"{number}.png"
    return StoredImage(number, "c", name, name, "test", "normal", None, group, None, content, 1, 1)


@pytest.mark.parametrize(
    ("images", "numbers"),
    [
        ([("a", None), ("b", None), ("a", None)], [0, 1, 0]),
        ([("a", "x"), ("b", "x"), ("c", "y")], [0, 0, 1]),
        # A copy joins the groups that it is said to be of.
        ([("a", "x"), ("b", "y"), ("c", None), ("a", "y"), ("c", None)], [0, 0, 1, 0, 1]),
        ([("x", None), ("a", "x")], [0, 1]),
        ([], []),
    ],
)
def test_parts(images: list[tuple[str, str | None]], numbers: list[int]) -> None:
    found = part_numbers([image(n, *one) for n, one in enumerate(images)])
    assert found.dtype == np.int64
    assert found.tolist() == numbers


def test_a_link_a_copied_folder_and_a_loop(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "good"
    folder.mkdir(parents=True)
    for n in range(3):
        Image.new("L", (4, 4), 40 * n).save(folder / f"{n}.png")
    shutil.copytree(folder, tmp_path / "data" / "good copy")
    (folder / "again.png").symlink_to("0.png")
    (folder / "loop").symlink_to("..")
    dataset = scan(tmp_path / "data", label="normal")
    assert len(dataset.records) == 7
    seen = FilesSeen(None)
    stored = []
    for n, record in enumerate(dataset.records):
        file = probe_image(os.path.join(dataset.root, record.path))
        seen.add(record.path, file)
        stored.append(image(n, file.sha256))
    assert part_numbers(stored).max() == 2
    assert any("4 of the files have the content of another one" in p for p in seen.problems())
