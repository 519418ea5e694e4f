"""What a category's images make hard to find, said at training with the option that helps."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

import numpy as np

from pgdefect.core.errors import ImageError
from pgdefect.core.types import StoredImage
from pgdefect.core.wording import option
from pgdefect.vision.defects.region import connected_regions
from pgdefect.vision.images.image import probe_image
from pgdefect.vision.images.masks import load_mask
from pgdefect.vision.images.preprocess import MAX_SIZE, Preprocessing

__all__ = ["image_notes"]

LOOKED_AT = 24
"""Photographs or masks that are read for this, spread over all."""
SIZE_STEP = 32

GridOf = Callable[[tuple[int, int]], tuple[int, int]]
"""Rows and columns of the patches of an image of that `(height, width)`."""


def image_notes(
    normal: Sequence[StoredImage],
    everything: Sequence[StoredImage],
    preprocessing: Preprocessing,
    grid_of: GridOf,
) -> list[str]:
    """Lines about training images that show nothing and defects that are smaller than a patch.

    Args:
        normal: the training images.
        everything: all images of the category, of which the anomalous ones have masks.
        preprocessing: of the training.
        grid_of: of its network.
    """
    notes = []
    if _show_nothing(normal):
        notes.append(
            "the training images have one gray level each, so that nothing can be learned from "
            "them: look at the files, and at what wrote them"
        )
    if small := _small_defects(everything, preprocessing, grid_of):
        notes.append(small)
    return notes


def _spread(images: Sequence[StoredImage]) -> Sequence[StoredImage]:
    return images[:: max(1, -(-len(images) // LOOKED_AT))]


def _show_nothing(images: Sequence[StoredImage]) -> bool:
    levels = []
    for image in _spread(images):
        try:
            levels.append(probe_image(image.path, image.gray_scale).samples.one_level)
        except ImageError:
            continue  # the extraction names it
        if not levels[-1]:
            return False
    return bool(levels)


def _small_defects(
    images: Sequence[StoredImage], preprocessing: Preprocessing, grid_of: GridOf
) -> str | None:
    """A line where half of the defects in the masks, or more, are smaller than a patch."""
    masked = [
        image
        for image in images
        if image.known_label == "anomalous"
        and image.mask_path is not None
        and image.split != "simulated"
    ]
    defects, small, needed, native = 0, 0, 1.0, 1.0
    patch = 0.0
    for image in _spread(masked):
        size = (image.height, image.width)
        root = image.path.removesuffix(str(PurePosixPath(image.relative_path)))
        try:
            mask = load_mask(os.path.join(root, image.mask_path or ""), size, image=image.path)
        except ImageError:
            continue  # the evaluation names it
        labels = connected_regions(mask)
        areas = np.unique(labels[labels > 0], return_counts=True)[1]
        if not len(areas):
            continue
        seen = preprocessing.input_size_of(size)
        rows, cols = grid_of(size)
        area = mask.size / (rows * cols)
        defects += len(areas)
        small += int((areas < area).sum())
        patch = math.sqrt(area)
        needed = max(needed, patch / math.sqrt(float(np.median(areas))))
        native = max(native, math.sqrt(mask.size / math.prod(seen)))
    if not small or 2 * small < defects:
        return None
    side = round(math.sqrt(math.prod(preprocessing.image_size)))
    wanted = min(needed, native) * side
    larger = min(SIZE_STEP * math.ceil(wanted / SIZE_STEP), MAX_SIZE)
    which = f"{small} of {defects} defects in the masks are smaller than a patch, which covers "
    which += f"{patch:.0f} x {patch:.0f} pixels of an image: they are easily missed"
    if larger <= side:
        return (
            f"{which}. The photographs have no more pixels than the network sees; photograph "
            "closer, or cut them into tiles that are ingested each as an image"
        )
    remedy = f"{which}. Train with {option('image_size', larger)}"
    if needed > native:
        remedy += (
            ", which is all that the photographs have; and photograph closer, or cut them into "
            "tiles that are ingested each as an image"
        )
    return remedy
