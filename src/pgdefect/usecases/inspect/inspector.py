"""A category's active detector, loaded: decodes, embeds, scores; stores nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from pgdefect.core.config import Settings
from pgdefect.core.detector_kinds import KINDS, PATCHCORE, check_kind, kind_named
from pgdefect.core.errors import ImageError, NoMemoryBank, NotFound, UsageError
from pgdefect.core.threads import one_blas_thread_each
from pgdefect.core.types import (
    DetectorKind,
    Float32,
    Inspection,
)
from pgdefect.core.wording import option
from pgdefect.core.words import SEARCHES, check_word
from pgdefect.db.connection.engine import Database
from pgdefect.db.records.catalog import gray_scale
from pgdefect.db.records.detectors import active_detector
from pgdefect.usecases.common.patch_search import SearchKind
from pgdefect.usecases.inspect.defects import DefectFinder, EmbeddedPatches
from pgdefect.usecases.inspect.judge import JudgeFactory, Score
from pgdefect.vision.images.image import ImageFile
from pgdefect.vision.images.picture import Picture
from pgdefect.vision.images.preprocess import batches
from pgdefect.vision.networks.extractor import BATCH_SIZE, Extractor
from pgdefect.vision.patchcore.scoring import normalized_score

__all__ = ["Inspector", "Judged"]


@dataclass(frozen=True)
class Judged:
    """One image on its way through: what was read, its embedding, its verdict.

    Attributes:
        patches: raw patch embeddings `(rows, cols, dim)`; None from a network that makes none.
        extract_ms: an equal share of its batch's time in the network.
        search_ms: of its own, scoring.
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


class Inspector:
    """A category's active detector, loaded: judges files, stores nothing.

    kind: which one where several are active; the preferred one's if it does not say. search: how
    a memory bank is searched; hnsw if it does not say.

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
        check_kind(kind)
        check_word("search", search, SEARCHES)
        self.detector = active_detector(database, category, kind)
        self.kind = kind_named(self.detector.kind)
        if search is not None and not self.kind.has_bank:
            raise UsageError(
                f"the detector of {category!r} is {self.kind.noun}, which searches nothing; "
                f"leave out {option('search', search)}"
            )
        self.search_kind: SearchKind | Literal["network"] = (
            (search or "hnsw") if self.kind.has_bank else "network"
        )
        load: JudgeFactory = self.kind.code("judge")
        self._judge = load(database, settings, self.detector, search)
        self.preprocessing = self._judge.preprocessing
        self._database, self._settings = database, settings
        with database.connect() as connection:
            self.gray_scale = gray_scale(connection, category).white

    @property
    def extractor(self) -> Extractor:
        """Of patch embeddings. Raises NoMemoryBank for a detector that makes none."""
        if self._judge.extractor is None:
            raise NoMemoryBank(
                f"the detector of {self.detector.category!r} is {self.kind.noun}; this needs "
                f"{KINDS[PATCHCORE].noun}"
            )
        return self._judge.extractor

    @cached_property
    def defect_finder(self) -> DefectFinder:
        """Finds where and how judged images depart from normal.

        Raises:
            NotFound: where this detector cannot say: it has no memory bank, or is an old one.
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
                scored = zip(*self._judge(batch.inputs), strict=True)
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
            [embedding], [score], [patches] = self._judge(inputs)
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
