"""Defect embeddings of judged images, and what the most similar known defects are called."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection

from pgdefect.db.defects import find_defect_space, has_raw_vectors, raw_bank_vectors
from pgdefect.db.engine import Database
from pgdefect.db.search import SearchFilter, nearest
from pgdefect.errors import NotFound
from pgdefect.types import AnomalousRegion, Defect, Detector, Float32, PatchScores, Vote
from pgdefect.vision.defect_embedding import defect_embedding, weighed_patches
from pgdefect.vision.extractor import Extractor
from pgdefect.vision.region import anomalous_regions, region_box

__all__ = ["DefectFinder", "EmbeddedPatches", "Voter"]

Mask = NDArray[np.bool_]
VOTERS = 10
MIN_SUPPORT = 3


@dataclass(frozen=True)
class EmbeddedPatches:
    """An inspected image: preprocessed `(3, height, width)`, its raw patch embeddings
    `(rows, cols, raw_dim)` and its patch scores. size: `(height, width)` of the photograph.
    """

    inputs: Float32
    patches: Float32
    scores: PatchScores
    size: tuple[int, int]


class DefectFinder:
    """Where images depart from normal, and how: for one PatchCore detector.

    Raises NotFound where the detector was stored without what this needs.
    """

    def __init__(self, database: Database, detector: Detector, extractor: Extractor) -> None:
        space = find_defect_space(database, detector.extractor_id)
        score_std = detector.bank.patch_score_std
        if space is None or score_std is None or not has_raw_vectors(database, detector.bank):
            raise NotFound(
                f"detector {detector.id} of {detector.category} was trained before defect "
                f"embeddings were made; train again: pgdefect train {detector.category}"
            )
        self.space = space
        self.score_std = score_std
        self.bank = detector.bank
        self.threshold = detector.threshold
        self.extractor = extractor
        self.preprocessing = extractor.preprocessing

    def defect(self, connection: Connection, image: EmbeddedPatches) -> Defect:
        """The image's defect embedding and those of its anomalous regions, worst first."""
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
        scores, positions = image.scores.distances.reshape(-1), image.scores.positions
        assert positions is not None
        chosen = [
            weighed_patches(self.space, scores, self.score_std, mask.reshape(-1)) for mask in masks
        ]
        needed = np.unique(np.concatenate(chosen))
        nearest = raw_bank_vectors(connection, self.bank, positions.reshape(-1)[needed])
        patches = image.patches.reshape(-1, image.patches.shape[-1])
        context = None
        if self.space.appearance_of == "context":
            deep = self.extractor.context(image.inputs[None])[0]
            context = deep.reshape(-1, deep.shape[-1])
        result = []
        for cells in chosen:
            at = np.searchsorted(needed, cells)
            result.append(
                defect_embedding(
                    self.space,
                    patches[cells],
                    nearest[at],
                    None if context is None else context[cells],
                    scores[cells],
                    self.score_std,
                )
            )
        return result

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

    The `VOTERS` nearest of the category by defect embedding, one for each part, of those
    whose defect type is known from the data set or a review. It takes more than half of
    them, and at least `MIN_SUPPORT`, for a guess.
    """

    def __init__(self, database: Database, detector: Detector) -> None:
        self._database = database
        self._detector = detector

    def vote(self, defect: Defect, image_id: int | None, sha256: str | None = None) -> Vote | None:
        """None where nothing is known to compare with."""
        neighbors = nearest(
            self._database,
            "defect",
            self._detector.extractor_id,
            defect.embedding,
            VOTERS,
            SearchFilter(
                category=self._detector.category,
                has_defect_type=True,
                except_images=() if image_id is None else (image_id,),
                except_group=True,
                except_sha256=() if sha256 is None else (sha256,),
            ),
        )
        counts = Counter(n.image.defect_type for n in neighbors if n.image.defect_type)
        if not counts:
            return None
        needed = max(MIN_SUPPORT, sum(counts.values()) // 2 + 1)
        return Vote(VOTERS, dict(counts.most_common()), needed)
