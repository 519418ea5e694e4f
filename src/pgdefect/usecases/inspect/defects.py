"""Defect embeddings of judged images, and what the most similar known defects are called."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection

from pgdefect.core.config import Settings
from pgdefect.core.errors import NotFound
from pgdefect.core.likeness import distances_to_own_type, likeness_limit
from pgdefect.core.types import (
    MIN_VOTERS,
    AnomalousRegion,
    Defect,
    Detector,
    Float32,
    PatchScores,
    Vote,
    num_voters,
)
from pgdefect.core.wording import command
from pgdefect.db.connection.engine import Database
from pgdefect.db.records.catalog import gray_scale
from pgdefect.db.records.defects import (
    find_defect_space,
    has_raw_vectors,
    known_defect_embeddings,
    known_defects,
    load_defect_view,
    raw_bank_vectors,
)
from pgdefect.db.search.search import SearchFilter, nearest
from pgdefect.vision.defects.defect_embedding import anomaly, anomaly_weights, defect_embedding
from pgdefect.vision.defects.defect_view import DefectView
from pgdefect.vision.defects.region import anomalous_regions, region_box
from pgdefect.vision.images.image import load_image
from pgdefect.vision.images.preprocess import Preprocessing

__all__ = ["DefectFinder", "EmbeddedPatches", "Voter"]

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class EmbeddedPatches:
    """An inspected image: its file, raw patch embeddings `(rows, cols, raw_dim)` and patch scores.

    Attributes:
        source: the path of the file, or the pixels, uint8 `(height, width, 3)`.
        size: `(height, width)` of the photograph.
    """

    source: str | NDArray[np.uint8]
    patches: Float32
    scores: PatchScores
    size: tuple[int, int]


class DefectFinder:
    """Where images depart from normal, and how: for one PatchCore detector.

    Raises NotFound where the detector was stored without what this needs.
    """

    def __init__(
        self,
        database: Database,
        settings: Settings,
        detector: Detector,
        preprocessing: Preprocessing,
    ) -> None:
        space = find_defect_space(database, detector.extractor_id, detector.id)
        score_std = detector.bank.patch_score_std
        if space is None or score_std is None or not has_raw_vectors(database, detector.bank):
            raise NotFound(
                f"detector {detector.id} of {detector.category} was trained before defect "
                f"embeddings were made; train again: {command('train', detector.category)}"
            )
        self.space = space
        self.score_std = score_std
        self.bank = detector.bank
        self.threshold = detector.threshold
        self.preprocessing = preprocessing
        self._load_view = partial(
            load_defect_view,
            extractor_id=detector.extractor_id,
            cache_dir=settings.cache_dir,
        )
        self._view: DefectView | None = None
        self._loaded = False
        with database.connect() as connection:
            self._gray_scale = gray_scale(connection, detector.category).white

    def _features(self, connection: Connection, source: str | NDArray[np.uint8]) -> list[Float32]:
        """What the second look sees; its network is loaded when the first defect turns up."""
        if not self._loaded:
            artifact = self._load_view(connection)
            self._view = DefectView(artifact) if artifact else None
            self._loaded = True
        if self._view is None:
            return []
        pixels = load_image(source, self._gray_scale) if isinstance(source, str) else source
        return self._view(pixels)

    def defect(self, connection: Connection, image: EmbeddedPatches) -> Defect:
        """The image's defect embedding and those of its anomalous regions, worst first.

        Raises:
            ImageError: where the file cannot be read any more.
        """
        masks = anomalous_regions(image.scores.distances, self.threshold)
        everywhere = np.ones(image.scores.distances.shape, dtype=bool)
        whole, *parts = self._embeddings(connection, image, [everywhere, *masks])
        return Defect(
            whole,
            tuple(
                self._region(image, mask, embedding)
                for mask, embedding in zip(masks, parts, strict=True)
            ),
        )

    def within(
        self, connection: Connection, image: EmbeddedPatches, box: tuple[int, int, int, int]
    ) -> AnomalousRegion:
        """What the patches in a box, `(x, y, width, height)` in pixels, show: one region."""
        mask = self.preprocessing.cells_in(box, image.scores.distances.shape, image.size)
        [embedding] = self._embeddings(connection, image, [mask])
        return self._region(image, mask, embedding)

    def _embeddings(
        self, connection: Connection, image: EmbeddedPatches, masks: list[Mask]
    ) -> list[Float32]:
        scores, positions = image.scores.distances, image.scores.positions
        assert positions is not None
        features = self._features(connection, image.source)
        found = anomaly(self.space, scores, self.score_std, features)
        weights = [anomaly_weights(self.space, found, mask) for mask in masks]
        needed = np.any([one > 0 for one in weights], axis=0)
        nearest = np.zeros_like(image.patches)
        nearest[needed] = raw_bank_vectors(connection, self.bank, positions[needed])
        return [
            defect_embedding(self.space, one, image.patches, nearest[one > 0], features)
            for one in weights
        ]

    def _region(self, image: EmbeddedPatches, mask: Mask, embedding: Float32) -> AnomalousRegion:
        inside = image.scores.distances[mask]
        return AnomalousRegion(
            box=region_box(mask, self.preprocessing, image.size),
            num_patches=int(mask.sum()),
            area=float(mask.mean()),
            peak_score=float(inside.max()),
            mean_score=float(inside.mean()),
            embedding=embedding,
        )


class Voter:
    """Asks the known defects most like one what they are called.

    The `num_voters` nearest of the category by defect embedding, one for each part, of those
    whose defect type is known from the data set or a review. It takes more than half of
    them, and at least `MIN_VOTERS`, for a guess, and a nearest one that is as near as known
    defects of one type are to one another (`likeness_limit`).
    """

    def __init__(self, database: Database, detector: Detector) -> None:
        self._database = database
        self._detector = detector

    @cached_property
    def _num_voters(self) -> int:
        detector = self._detector
        return num_voters(
            known_defects(self._database, detector.category_id, detector.extractor_id)
        )

    @cached_property
    def _limit(self) -> float | None:
        detector = self._detector
        known = known_defect_embeddings(self._database, detector.category_id, detector.extractor_id)
        return likeness_limit(distances_to_own_type(*known))

    def vote(self, defect: Defect, image_id: int | None, sha256: str | None = None) -> Vote | None:
        """None where nothing is known to compare with."""
        neighbors = nearest(
            self._database,
            "defect",
            self._detector.extractor_id,
            defect.embedding,
            self._num_voters,
            SearchFilter(
                category=self._detector.category,
                has_defect_type=True,
                except_images=() if image_id is None else (image_id,),
                except_part=True,
                except_sha256=() if sha256 is None else (sha256,),
            ),
        )
        counts = Counter(n.image.known_defect_type for n in neighbors if n.image.known_defect_type)
        if not counts:
            return None
        needed = max(MIN_VOTERS, sum(counts.values()) // 2 + 1)
        return Vote(
            self._num_voters,
            dict(counts.most_common()),
            needed,
            neighbors[0].distance,
            self._limit,
        )
