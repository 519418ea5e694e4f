"""Find the stored images most like a file or a stored image."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from pgdefect.config import Settings
from pgdefect.db.engine import Database
from pgdefect.db.queries import (
    ImageFilter,
    categories_by_sha256,
    find_image,
    images_by_sha256,
    nearest_images,
)
from pgdefect.errors import ImageError, UsageError
from pgdefect.pipeline.inspect import Inspector, Judged
from pgdefect.types import DetectorKind, Inspection, Neighbor, StoredImage
from pgdefect.vision.image import probe_image
from pgdefect.vision.preprocess import Preprocessing

MAX_K = 10_000


@dataclass(frozen=True)
class SearchReport:
    """The query's verdict and its neighbors, nearest first."""

    query: str
    image: StoredImage | None
    inspection: Inspection
    preprocessing: Preprocessing
    neighbors: tuple[Neighbor, ...]


def search(
    database: Database,
    settings: Settings,
    query: str,
    *,
    k: int = 10,
    category: str | None = None,
    all_categories: bool = False,
    label: str | None = None,
    defect_type: str | None = None,
    exclude_group: bool = False,
    simulated: bool = False,
    exact: bool = False,
    kind: DetectorKind | None = None,
) -> SearchReport:
    """Judge an image and list the k stored images most like it.

    query is a file, or a stored image by id, end of path or start of sha256. The verdict
    is that of the category's active detector (of `kind`), and its extractor's image
    embeddings are compared; nothing is stored. Neighbors come from the same category unless
    `all_categories`; the query itself and copies of its file are never among them, images
    with simulated defects only if `simulated`.

    Raises:
        UnknownImage, Conflict: the word names no stored image, or several;
        UsageError: a new file needs its category named.
    """
    check_k(k)
    image, path, category = _resolve(database, query, category)
    inspector = Inspector(database, settings, category, kind=kind)
    judged = _judge(inspector, path)
    if image is None or image.category != category:
        with database.connect() as connection:
            alike = images_by_sha256(connection, category, [judged.file.sha256])
        image = next(iter(alike.get(judged.file.sha256, [])), None)
    where = ImageFilter(
        category=None if all_categories else category,
        label=label,
        defect_type=defect_type,
        except_image=image.id if image else None,
        except_group=exclude_group,
        except_sha256=judged.file.sha256,
        simulated=simulated,
    )
    neighbors = nearest_images(
        database, inspector.detector.extractor_id, judged.embedding, k, where, exact=exact
    )
    inspection = judged.inspection
    if image is not None:
        inspection = replace(
            inspection, image_id=image.id, label=image.label, defect_type=image.defect_type
        )
    return SearchReport(query, image, inspection, inspector.preprocessing, tuple(neighbors))


def check_k(k: int) -> None:
    """Raises UsageError for a number of neighbors that cannot be asked for."""
    if not 1 <= k <= MAX_K:
        raise UsageError(f"-k must lie between 1 and {MAX_K:,}, not {k}")


def _resolve(
    database: Database, query: str, category: str | None
) -> tuple[StoredImage | None, str, str]:
    """The stored image if there is one, the file to read, the category to judge it in."""
    if not os.path.lexists(query):
        image = find_image(database, query)
        return image, image.path, category or image.category
    if category is not None:
        return None, query, category
    digest = probe_image(Path(query)).sha256
    with database.connect() as connection:
        holding, known = categories_by_sha256(connection, digest)
    if len(holding) == 1:
        return None, query, holding[0]
    if not holding and len(known) == 1:
        return None, query, known[0]
    raise UsageError(
        f"name the category of {query!r} with --category; "
        f"known: {', '.join(holding or known) or 'none yet'}"
    )


def _judge(inspector: Inspector, path: str) -> Judged:
    def fail(index: int, error: ImageError) -> None:
        raise error

    return next(iter(inspector.judge([path], fail)))[0][1]
