"""Which photographs show one physical part: those of a group, and copies of one file."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pgdefect.core.types import StoredImage

__all__ = ["part_numbers"]


def part_numbers(images: Sequence[StoredImage]) -> NDArray[np.int64]:
    """A number for each image's part.

    A photograph that was ingested twice (through a link, a copied folder, another mount) is one
    part, and joins the groups that its copies are said to be of.

    Returns:
        int64 `(len(images),)`, from 0 in the order in which parts appear.
    """
    first_of: dict[str, int] = {}
    joined = list(range(len(images)))

    def root(index: int) -> int:
        while joined[index] != index:
            joined[index] = joined[joined[index]]
            index = joined[index]
        return index

    for index, image in enumerate(images):
        names = [f"sha256 {image.sha256}", *([f"part {image.part}"] if image.part else [])]
        for name in names:
            one, other = sorted((root(index), root(first_of.setdefault(name, index))))
            joined[other] = one
    numbers: dict[int, int] = {}
    found = [numbers.setdefault(root(index), len(numbers)) for index in range(len(images))]
    return np.array(found, dtype=np.int64)
