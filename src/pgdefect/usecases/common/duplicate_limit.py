"""How far an image embedding moves when a photograph is saved anew, against other photographs.

Measured on a sample of a category's own images with the extractor that embeds them: no distance
holds for all, as one extractor's JPEG copies lie farther apart than another's different parts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np

from pgdefect.core.errors import ImageError
from pgdefect.core.types import Float32, StoredImage
from pgdefect.db.connection.engine import Database
from pgdefect.db.records.detectors import store_metrics
from pgdefect.db.search.search import SearchFilter, nearest
from pgdefect.vision.images.image import load_image
from pgdefect.vision.images.pixels import Rgb
from pgdefect.vision.networks.extractor import Extractor, image_embeddings

__all__ = ["DuplicateLimit", "duplicate_limit", "measure_duplicate_limit"]

SAMPLE = 24
"""Images that are saved anew."""
MIN_SAMPLE = 5
"""Fewer say nothing."""
SMALLEST = 1e-6
"""Cosine distances below are rounding: embeddings are stored in half precision."""
KINDS = ("lossless", "jpeg_90", "resized")
"""How a photograph is saved anew: without loss, as JPEG of quality 90, at half the size."""


@dataclass(frozen=True)
class DuplicateLimit:
    """Cosine distances of image embeddings, 0 to 2.

    Attributes:
        limit: pairs nearer than this are taken for one photograph.
        nearest_other: of a hundred images five or fewer have another photograph nearer than this.
        copies: by kind of copy, the distance that 95 of a hundred copies keep.
        found: by kind of copy, the share of copies within the limit.
        mistaken: the share of images with another photograph within the limit.
        num_images: how many were measured.
    """

    limit: float
    nearest_other: float
    copies: dict[str, float]
    found: dict[str, float]
    mistaken: float
    num_images: int

    def to_json(self) -> dict[str, Any]:
        """The measured figures as plain values."""
        return {**vars(self)}


def duplicate_limit(copies: dict[str, Sequence[float]], others: Sequence[float]) -> DuplicateLimit:
    """The limit between copies and other photographs, and what it tells apart.

    Kinds of copies that lie nearer than other photographs are to be found: the limit is the
    geometric mean of the farthest such kind and the nearest other photographs. Kinds that lie
    farther are given up, for with them other photographs would be found.

    Args:
        copies: by kind, the distances between images and their copies.
        others: the distance of each image to the nearest other photograph; at least one.
    """
    floor = np.maximum(np.asarray(others, dtype=np.float64), 0.0)
    nearest_other = float(np.quantile(floor, 0.05, method="lower"))
    far = {kind: float(np.quantile(values, 0.95)) for kind, values in copies.items()}
    told_apart = [SMALLEST, *(distance for distance in far.values() if distance < nearest_other)]
    limit = min(math.sqrt(max(told_apart) * nearest_other), nearest_other)
    return DuplicateLimit(
        limit,
        nearest_other,
        far,
        {kind: float(np.mean(np.asarray(values) < limit)) for kind, values in copies.items()},
        float(np.mean(floor < limit)),
        len(floor),
    )


def measure_duplicate_limit(
    database: Database,
    extractor: Extractor,
    detector_id: int,
    extractor_id: int,
    images: Sequence[StoredImage],
) -> DuplicateLimit | None:
    """Measure the limit on a sample of a category's embedded images, and store it.

    It is stored with the detector's metrics, as `near_duplicates`. Images that cannot be read are
    left out.

    Returns:
        None, and nothing is stored, where fewer than five could be measured.
    """
    step = max(1, len(images) // SAMPLE)
    copies: dict[str, list[float]] = {kind: [] for kind in KINDS}
    others: list[float] = []
    for image in images[::step][:SAMPLE]:
        try:
            pixels = load_image(image.path, image.gray_scale)
        except ImageError:
            continue
        embedding, *anew = _embedded(extractor, [pixels, *_saved_anew(pixels)])
        where = SearchFilter(category=image.category, except_images=(image.id,), except_part=True)
        found = nearest(database, "picture", extractor_id, embedding, 1, where)
        if not found:
            continue
        others.append(found[0].distance)
        for kind, copy in zip(KINDS, anew, strict=True):
            copies[kind].append(max(0.0, 1.0 - float(embedding @ copy)))
    if len(others) < MIN_SAMPLE:
        return None
    result = duplicate_limit({kind: values for kind, values in copies.items()}, others)
    store_metrics(database, detector_id, {"near_duplicates": result.to_json()})
    return result


def _embedded(extractor: Extractor, pictures: Sequence[Rgb]) -> Float32:
    inputs = np.stack([extractor.preprocessing.apply(pixels) for pixels in pictures])
    vectors = image_embeddings(extractor(inputs)).astype(np.float16).astype(np.float64)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def _saved_anew(pixels: Rgb) -> list[Rgb]:
    """Copies of a picture, in the order of `KINDS`, of its own size."""
    from PIL import Image

    picture = Image.fromarray(pixels)
    stream = BytesIO()
    picture.save(stream, "JPEG", quality=90)
    width, height = picture.size
    half = picture.resize((max(1, width // 2), max(1, height // 2)), Image.Resampling.LANCZOS)
    return [
        pixels,
        np.asarray(Image.open(stream).convert("RGB")),
        np.asarray(half.resize((width, height), Image.Resampling.LANCZOS)),
    ]
