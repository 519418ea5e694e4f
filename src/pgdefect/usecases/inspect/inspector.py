"""A category's active detector, loaded: decodes, embeds, scores; stores nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Literal

from pgdefect.core.config import Settings
from pgdefect.core.distance import as_stored
from pgdefect.core.errors import ImageError, NoMemoryBank, NotFound, UsageError
from pgdefect.core.threads import one_blas_thread_each
from pgdefect.core.types import (
    Detector,
    DetectorKind,
    Float32,
    Inspection,
    PatchScores,
)
from pgdefect.core.wording import option
from pgdefect.core.words import KINDS, SEARCHES, check_word
from pgdefect.db.connection.engine import Database
from pgdefect.db.records.catalog import gray_scale
from pgdefect.db.records.detectors import active_detector
from pgdefect.db.records.efficient_ad import load_network
from pgdefect.db.records.extractors import load_extractor
from pgdefect.usecases.common.patch_search import SearchKind, open_search, score_image
from pgdefect.usecases.inspect.defects import DefectFinder, EmbeddedPatches
from pgdefect.vision.efficient_ad.inference import Network
from pgdefect.vision.images.image import ImageFile
from pgdefect.vision.images.picture import Picture
from pgdefect.vision.images.preprocess import batches
from pgdefect.vision.networks.extractor import BATCH_SIZE, Extractor, image_embeddings
from pgdefect.vision.patchcore.scoring import normalized_score
from pgdefect.vision.patchcore.transform import apply_transform

__all__ = ["Inspector", "Judged"]


@dataclass(frozen=True)
class Judged:
    """One image on its way through: what was read, its embedding, its verdict.

    patches: raw patch embeddings `(rows, cols, dim)`; None from a network that makes none.
    extract_ms: an equal share of its batch's time in the network; search_ms: of its own, scoring.
    """

    file: ImageFile
    embedding: Float32
    inspection: Inspection
    patches: Float32 | None
    extract_ms: float
    search_ms: float
    picture: Picture | None = None

    @property
    def embedded_patches(self) -> EmbeddedPatches:
        assert self.patches is not None
        size = (self.file.height, self.file.width)
        source = self.picture.pixels if self.picture else str(self.file.path)
        return EmbeddedPatches(source, self.patches, self.inspection.scores, size)


Score = Callable[[int], PatchScores]
"""Scores one image, on as many threads as it is given."""
Scored = tuple[Float32, Sequence[Score], Sequence[Float32 | None]]
"""Of a batch: image embeddings, how to score each, the patch embeddings of each."""


class _BankScoring:
    """PatchCore: patch embeddings from the extractor, compared with the memory bank."""

    def __init__(
        self, database: Database, settings: Settings, detector: Detector, search: SearchKind
    ) -> None:
        self.bank = detector.bank
        self.search = open_search(database, self.bank, search)
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


class _NetworkScoring:
    """EfficientAD: one network gives scores and embeddings."""

    def __init__(self, database: Database, settings: Settings, detector: Detector) -> None:
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


class Inspector:
    """A category's active detector, loaded: judges files, stores nothing.

    kind: which one where both are active; PatchCore's if it does not say. search: how
    PatchCore's bank is searched; hnsw if it does not say.

    Raises UsageError where a search is asked of a detector that has nothing to search.
    """

    def __init__(
        self,
        database: Database,
        settings: Settings,
        category: str,
        search: SearchKind | None = None,
        kind: DetectorKind | None = None,
    ) -> None:
        check_word("kind", kind, KINDS)
        check_word("search", search, SEARCHES)
        self.detector = active_detector(database, category, kind)
        self.search_kind: SearchKind | Literal["network"]
        self._scoring: _BankScoring | _NetworkScoring
        if self.detector.kind == "patchcore":
            self.search_kind = search or "hnsw"
            self._scoring = _BankScoring(database, settings, self.detector, self.search_kind)
        elif search is None:
            self.search_kind = "network"
            self._scoring = _NetworkScoring(database, settings, self.detector)
        else:
            raise UsageError(
                f"the detector of {category!r} is an EfficientAD network, which searches nothing; "
                f"leave out {option('search', search)}"
            )
        self.preprocessing = self._scoring.preprocessing
        self._database, self._settings = database, settings
        with database.connect() as connection:
            self.gray_scale = gray_scale(connection, category).white

    @property
    def extractor(self) -> Extractor:
        """PatchCore's extractor. Raises NoMemoryBank for a network, which has one inside."""
        if isinstance(self._scoring, _NetworkScoring):
            raise NoMemoryBank(
                f"the detector of {self.detector.category!r} is an EfficientAD network; this needs "
                "a PatchCore detector"
            )
        return self._scoring.extractor

    @cached_property
    def defect_finder(self) -> DefectFinder:
        """Finds where and how judged images depart from normal.

        Raises NotFound where this detector cannot say: it is a network, or an old one.
        """
        return DefectFinder(self._database, self._settings, self.detector, self.preprocessing)

    @property
    def finds_defects(self) -> bool:
        """Whether there is a `defect_finder`."""
        try:
            return self.defect_finder is not None
        except NotFound:
            return False

    def judge(
        self,
        paths: Sequence[str],
        on_error: Callable[[int, ImageError], None],
        accept: Callable[[int, ImageFile], None] | None = None,
    ) -> Iterator[list[tuple[int, Judged]]]:
        """Verdicts batch by batch, as `(index in paths, judged)`; on_error and accept are
        `batches`'.

        Extraction of a batch runs while the one before is scored, on as many threads and
        connections as there are processors.
        """
        stream = batches(
            paths,
            self.preprocessing,
            BATCH_SIZE,
            num_threads=2,
            on_error=on_error,
            accept=accept,
            scale=self.gray_scale,
        )
        with (
            one_blas_thread_each() as num_threads,
            ThreadPoolExecutor(num_threads, "pgdefect-score") as pool,
        ):
            # With fewer images than cores, the patches of one are shared out among them.
            each = max(1, num_threads // max(1, len(paths)))
            waiting: list[tuple[int, Future[Judged]]] = []
            for batch in stream:
                began = time.perf_counter()
                scored = zip(*self._scoring(batch.inputs), strict=True)
                share = _milliseconds_since(began) / len(batch.files)
                submitted = [
                    (index, pool.submit(self._judge_one, file, *one, each, share))
                    for index, file, one in zip(batch.indices, batch.files, scored, strict=True)
                ]
                if waiting:
                    yield [(index, future.result()) for index, future in waiting]
                waiting = submitted
            if waiting:
                yield [(index, future.result()) for index, future in waiting]

    def judge_picture(self, picture: Picture) -> Judged:
        """The verdict on an image in memory; nothing is read from disk, no thread waited for."""
        began = time.perf_counter()
        inputs = self.preprocessing.apply(picture.pixels)[None]
        file = replace(picture.file, decode_ms=_milliseconds_since(began))
        with one_blas_thread_each() as num_threads:
            began = time.perf_counter()
            [embedding], [score], [patches] = self._scoring(inputs)
            share = _milliseconds_since(began)
            judged = self._judge_one(file, embedding, score, patches, num_threads, share)
        return replace(judged, picture=picture)

    def _judge_one(
        self,
        file: ImageFile,
        embedding: Float32,
        score: Score,
        patches: Float32 | None,
        num_threads: int,
        extract_ms: float,
    ) -> Judged:
        began = time.perf_counter()
        detector, scores = self.detector, score(num_threads)
        search_ms = _milliseconds_since(began)
        inspection = Inspection(
            path=str(file.path),
            category=detector.category,
            detector_id=detector.id,
            threshold=detector.threshold,
            raw_score=scores.raw_score,
            normalized_score=normalized_score(
                scores.raw_score, detector.threshold, detector.score_center
            ),
            scores=scores,
            worst_box=self.preprocessing.grid_to_pixels(
                scores.worst_row,
                scores.worst_col,
                scores.distances.shape,
                (file.height, file.width),
            ),
            search=self.search_kind,
            gray_scale=self.gray_scale,
        )
        return Judged(file, embedding, inspection, patches, extract_ms, search_ms)


def _milliseconds_since(began: float) -> float:
    return 1000 * (time.perf_counter() - began)
