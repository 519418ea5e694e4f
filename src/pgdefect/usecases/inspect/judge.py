"""How each kind of detector judges preprocessed images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from pgdefect.core.config import Settings
from pgdefect.core.distance import as_stored
from pgdefect.core.types import Detector, Float32, PatchScores
from pgdefect.db.connection.engine import Database
from pgdefect.db.records.efficient_ad import load_network
from pgdefect.db.records.extractors import load_extractor
from pgdefect.usecases.common.patch_search import SearchKind, open_search, score_image
from pgdefect.vision.efficient_ad.inference import Network
from pgdefect.vision.images.preprocess import Preprocessing
from pgdefect.vision.networks.extractor import Extractor, image_embeddings
from pgdefect.vision.patchcore.transform import apply_transform

__all__ = ["BankJudge", "Judge", "JudgeFactory", "NetworkJudge", "Score", "Scored"]

Score = Callable[[int], PatchScores]
"""Scores one image, on as many threads as it is given."""
Scored = tuple[Float32, Sequence[Score], Sequence[Float32 | None]]
"""Of a batch: image embeddings, how to score each, the patch embeddings of each."""


class Judge(Protocol):
    """A detector, loaded: judges batches of preprocessed images `(n, 3, height, width)`.

    extractor: of patch embeddings; None where it makes none.
    """

    @property
    def preprocessing(self) -> Preprocessing: ...

    @property
    def extractor(self) -> Extractor | None: ...

    def __call__(self, images: Float32) -> Scored: ...


class JudgeFactory(Protocol):
    """Loads a detector.

    search: how its bank is searched; None for a kind without one.
    """

    def __call__(
        self,
        database: Database,
        settings: Settings,
        detector: Detector,
        search: SearchKind | None,
        /,
    ) -> Judge: ...


class BankJudge:
    """PatchCore: patch embeddings from the extractor, compared with the memory bank."""

    def __init__(
        self, database: Database, settings: Settings, detector: Detector, search: SearchKind | None
    ) -> None:
        self.bank = detector.bank
        self.search = open_search(database, self.bank, search or "hnsw")
        self.extractor = Extractor(
            load_extractor(database, detector.extractor_id, settings.cache_dir)
        )
        self.preprocessing = self.extractor.preprocessing

    def __call__(self, images: Float32) -> Scored:
        patches = self.extractor(images)
        scores = [partial(self._score, one) for one in patches]
        return image_embeddings(patches), scores, list(patches)

    def _score(self, patches: Float32, num_threads: int) -> PatchScores:
        rows, cols, dim = patches.shape
        vectors = as_stored(
            apply_transform(self.bank.transform, patches.reshape(-1, dim)), self.bank.precision
        )
        return score_image(self.search, vectors, (rows, cols), num_threads)


class NetworkJudge:
    """EfficientAD: one network gives scores and embeddings."""

    extractor = None

    def __init__(
        self, database: Database, settings: Settings, detector: Detector, search: SearchKind | None
    ) -> None:
        self.network = Network(
            load_network(database, detector.id, settings.cache_dir),
            load_extractor(database, detector.extractor_id, settings.cache_dir),
        )
        self.preprocessing = self.network.preprocessing

    def __call__(self, images: Float32) -> Scored:
        embeddings, scores = self.network(images)
        return embeddings, [partial(_known, one) for one in scores], [None] * len(scores)


def _known(scores: PatchScores, num_threads: int) -> PatchScores:
    return scores
