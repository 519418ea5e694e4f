"""How well defects of one type find each other: by picture, by defect, by region."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgdefect.core.config import Settings
from pgdefect.core.detector_kinds import PATCHCORE
from pgdefect.core.errors import DatasetError, UsageError
from pgdefect.core.json_shapes import failed_json
from pgdefect.core.progress import Progress, silent
from pgdefect.core.types import Float32, SearchBy, StoredImage
from pgdefect.core.wording import option
from pgdefect.db.connection.engine import Database
from pgdefect.db.records.defects import defect_embeddings, region_embeddings
from pgdefect.db.records.detectors import store_metrics
from pgdefect.db.search.queries import image_embeddings_of, images_of
from pgdefect.evaluation.retrieval import RetrievalFigures, cosine_distances, retrieval_figures
from pgdefect.usecases.common.embedding import embed_images
from pgdefect.usecases.common.parts import part_numbers
from pgdefect.usecases.inspect.embed import embed_defects
from pgdefect.usecases.inspect.inspector import Inspector
from pgdefect.vision.networks.extractor import unit_vectors


@dataclass(frozen=True)
class RetrievalReport:
    """What was measured; every figure by what was compared.

    Attributes:
        images: how many were queries and candidates.
        parts: how many parts they show.
    """

    category: str
    detector_id: int
    split: str
    images: int
    parts: int
    by: Mapping[SearchBy, RetrievalFigures]
    failed: tuple[tuple[str, str], ...]

    def to_json(self) -> dict[str, Any]:
        """The figures by defect, over queries, on top; all others below."""
        headline = self.by["defect"]
        names = [name for name in headline.over_queries if name != "queries"]
        return {
            "category": self.category,
            "detector_id": self.detector_id,
            "split": self.split,
            "images": self.images,
            "parts": self.parts,
            "unanswerable": headline.unanswerable,
            **{name: headline.over_queries[name] for name in names},
            "by": {
                by: {
                    "over_queries": figures.over_queries,
                    "over_types": figures.over_types,
                    "by_type": figures.by_type,
                }
                for by, figures in self.by.items()
            },
            "failed": failed_json(self.failed),
        }


def evaluate_retrieval(
    database: Database,
    settings: Settings,
    category: str,
    *,
    split: str = "test",
    without_parts: bool = False,
    progress: Progress = silent,
) -> RetrievalReport:
    """Search each anomalous image of known defect type among the others, exactly.

    Missing embeddings are made first; no label goes into them. The figures are kept with
    the detector (`defect.banks`, column metrics).

    Raises:
        UnknownCategory, NoActiveDetector, NotFound;
        DatasetError: no images with defect types;
        UsageError: no image names its part, and `without_parts` does not say that each is of
        a part of its own.
    """
    inspector = Inspector(database, settings, category, "hnsw", PATCHCORE)
    detector = inspector.detector
    images = [
        image
        for image in images_of(database, category, split=split, label="anomalous")
        if image.known_defect_type is not None
    ]
    if not images:
        raise DatasetError(
            f"category {category!r} has no anomalous {split} images with a defect type; ingest a "
            "folder test/<defect type>, or say what images show with: pgdefect review"
        )
    if not any(image.part for image in images) and not without_parts:
        raise UsageError(
            f"the {split} images of {category!r} name no parts, so that other photographs of one "
            f"part would count as finds. Ingest them with {option('parts')}, or say with "
            f"{option('without_parts')} that each shows another part"
        )
    failed = embed_images(database, inspector.extractor, detector.extractor_id, images, progress)
    found = defect_embeddings(database, detector.extractor_id, [image.id for image in images])
    missing = [i for i in images if i.id not in found or found[i.id][0] != detector.id]
    _, unread = embed_defects(database, settings, inspector, missing, progress)
    failed = list(dict([*failed, *unread]).items())
    lost = {path for path, _ in failed}
    images = [image for image in images if image.path not in lost]
    groups = part_numbers(images)
    types = [str(image.known_defect_type) for image in images]
    figures = {
        by: retrieval_figures(distances, types, groups)
        for by, distances in _distances(database, detector.extractor_id, images).items()
    }
    store_metrics(
        database,
        detector.id,
        {"retrieval": {by: found.over_queries for by, found in figures.items()}},
    )
    return RetrievalReport(
        category,
        detector.id,
        split,
        len(images),
        len(np.unique(groups)),
        figures,
        tuple(failed),
    )


def _distances(
    database: Database, extractor_id: int, images: list[StoredImage]
) -> dict[SearchBy, NDArray[np.float64]]:
    """Between all images `(n, n)`, from each query to each candidate."""
    ids = [image.id for image in images]
    pictures = image_embeddings_of(database, extractor_id, ids)
    defects = defect_embeddings(database, extractor_id, ids)
    regions = region_embeddings(database, extractor_id, ids)
    return {
        "picture": cosine_distances(np.stack([pictures[id_] for id_ in ids])),
        "defect": cosine_distances(np.stack([defects[id_][1] for id_ in ids])),
        "region": _region_distances([regions[id_] for id_ in ids]),
    }


def _region_distances(regions: list[Float32]) -> NDArray[np.float64]:
    """From each image's worst region to the nearest region of each image."""
    worst = unit_vectors(np.stack([some[0] for some in regions]))
    starts = np.cumsum([0, *(len(some) for some in regions[:-1])])
    similarity = worst @ unit_vectors(np.concatenate(regions)).T
    return np.asarray(1.0 - np.maximum.reduceat(similarity, starts, axis=1), dtype=np.float64)
