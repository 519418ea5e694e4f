"""Judge images with a category's active detector: decode, embed, score in SQL, store."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from sqlalchemy import Connection

from pgdefect.config import Settings
from pgdefect.db import catalog
from pgdefect.db.detectors import active_detector
from pgdefect.db.engine import Database
from pgdefect.db.extractors import load_extractor, store_image_embeddings
from pgdefect.db.inspections import store_inspections
from pgdefect.db.networks import load_network
from pgdefect.db.queries import images_by_sha256, images_of, stored_images
from pgdefect.distance import as_stored
from pgdefect.errors import DatasetError, ImageError, UsageError
from pgdefect.pipeline.files import list_images
from pgdefect.pipeline.patch_search import SearchKind, open_search, score_image
from pgdefect.pipeline.progress import Progress, silent
from pgdefect.threads import one_blas_thread_each
from pgdefect.types import Detector, DetectorKind, Float32, Inspection, PatchScores, StoredImage
from pgdefect.vision.extractor import BATCH_SIZE, Extractor, image_embeddings
from pgdefect.vision.image import ImageFile
from pgdefect.vision.network import Network
from pgdefect.vision.preprocess import Preprocessing, batches
from pgdefect.vision.scoring import normalized_score
from pgdefect.vision.transform import apply_transform


@dataclass(frozen=True)
class InspectReport:
    """Judgements in the order of the files, and the files that could not be read."""

    category: str
    detector: Detector
    preprocessing: Preprocessing
    inspections: tuple[Inspection, ...]
    failed: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Judged:
    """One image on its way through: what was read, its embedding, its verdict."""

    file: ImageFile
    embedding: Float32
    inspection: Inspection


Score = Callable[[int], PatchScores]
"""Scores one image, on as many threads as it is given."""


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

    def __call__(self, images: Float32) -> tuple[Float32, list[Score]]:
        patches = self.extractor(images)
        return image_embeddings(patches), [partial(self._score, one) for one in patches]

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

    def __call__(self, images: Float32) -> tuple[Float32, list[Score]]:
        embeddings, scores = self.network(images)
        return embeddings, [partial(_known, one) for one in scores]


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
                f"leave out --search {search}"
            )
        self.preprocessing = self._scoring.preprocessing

    def judge(
        self,
        paths: Sequence[str],
        on_error: Callable[[int, ImageError], None],
    ) -> Iterator[list[tuple[int, Judged]]]:
        """Verdicts batch by batch, as `(index in paths, judged)`.

        Extraction of a batch runs while the one before is scored, on as many threads and
        connections as there are processors.
        """
        stream = batches(paths, self.preprocessing, BATCH_SIZE, num_threads=2, on_error=on_error)
        with (
            one_blas_thread_each() as num_threads,
            ThreadPoolExecutor(num_threads, "pgdefect-score") as pool,
        ):
            # With fewer images than cores, the patches of one are shared out among them.
            each = max(1, num_threads // max(1, len(paths)))
            waiting: list[tuple[int, Future[Judged]]] = []
            for batch in stream:
                embeddings, scores = self._scoring(batch.inputs)
                submitted = [
                    (index, pool.submit(self._judge_one, file, embedding, score, each))
                    for index, file, embedding, score in zip(
                        batch.indices, batch.files, embeddings, scores, strict=True
                    )
                ]
                if waiting:
                    yield [(index, future.result()) for index, future in waiting]
                waiting = submitted
            if waiting:
                yield [(index, future.result()) for index, future in waiting]

    def _judge_one(
        self, file: ImageFile, embedding: Float32, score: Score, num_threads: int
    ) -> Judged:
        detector, scores = self.detector, score(num_threads)
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
        )
        return Judged(file, embedding, inspection)


def inspect(
    database: Database,
    settings: Settings,
    category: str,
    paths: Sequence[Path] = (),
    *,
    split: str | None = None,
    store: bool = True,
    search: SearchKind | None = None,
    kind: DetectorKind | None = None,
    progress: Progress = silent,
    on_judged: Callable[[Inspection], None] = lambda inspection: None,
) -> InspectReport:
    """Judge files and folders, or stored images of one split, with the active detector.

    `kind` and `search` are `Inspector`'s.

    Files that are new to the category are recorded as production images. An image judged
    before by this detector under this threshold keeps its one inspection, renewed. Stored
    batch by batch: interrupted, what was judged is kept, and a second run completes it.

    Raises:
        UnknownCategory, NoActiveDetector, UsageError; DatasetError: nothing to inspect.
    """
    inspector = Inspector(database, settings, category, search, kind)
    if paths:
        files = list_images(paths)
        known: dict[str, StoredImage] = {}
        order = list(range(len(files)))
    else:
        stored = images_of(database, category, split=split)
        if not stored:
            which = f"{split} images" if split else "images"
            raise DatasetError(
                f"category {category!r} has no {which}; name files or folders to inspect, or add "
                f"some with: pgdefect ingest PATH --category {category}"
            )
        files = [image.path for image in stored]
        known = {image.path: image for image in stored}
        sizes = [inspector.preprocessing.input_size_of((i.height, i.width)) for i in stored]
        # A batch holds inputs of one size.
        order = sorted(range(len(files)), key=sizes.__getitem__)
    failed: list[tuple[str, str]] = []

    def on_error(index: int, error: ImageError) -> None:
        failed.append((files[order[index]], str(error)))

    inspections: list[tuple[int, Inspection]] = []
    for batch in inspector.judge([files[n] for n in order], on_error):
        judged = [item for _, item in batch]
        with database.begin() as connection:
            images = _matching(connection, category, judged, known)
            if store:
                images = _record(connection, inspector, judged, images)
            results = [_with_image(item, images[n]) for n, item in enumerate(judged)]
            if store:
                ids = store_inspections(connection, results)
                results = [
                    replace(result, inspection_id=id_)
                    for result, id_ in zip(results, ids, strict=True)
                ]
        for (index, _), result in zip(batch, results, strict=True):
            inspections.append((order[index], result))
            on_judged(result)
        progress("inspect", len(inspections) + len(failed), len(files))
    inspections.sort(key=lambda item: item[0])
    return InspectReport(
        category,
        inspector.detector,
        inspector.preprocessing,
        tuple(item for _, item in inspections),
        tuple(failed),
    )


def _matching(
    connection: Connection,
    category: str,
    judged: Sequence[Judged],
    known: dict[str, StoredImage],
) -> list[StoredImage | None]:
    """The stored image each file is, by path where the list came from the database, else by
    content: the one at the same path if several are alike.
    """
    by_content = images_by_sha256(connection, category, [item.file.sha256 for item in judged])
    found: list[StoredImage | None] = []
    for item in judged:
        path = str(item.file.path)
        alike = by_content.get(item.file.sha256, [])
        same = [image for image in alike if image.path == os.path.abspath(path)]
        found.append(known.get(path) or next(iter(same or alike), None))
    return found


def _record(
    connection: Connection,
    inspector: Inspector,
    judged: Sequence[Judged],
    images: Sequence[StoredImage | None],
) -> list[StoredImage | None]:
    """Add files that are new as production images, and every image embedding."""
    result = list(images)
    for n, (item, image) in enumerate(zip(judged, images, strict=True)):
        if image is not None:
            continue
        path = Path(os.path.abspath(item.file.path))
        root_id = catalog.ensure_root(connection, str(path.parent))
        new = catalog.NewImage(
            path=path.name,
            sha256=item.file.sha256,
            num_bytes=item.file.num_bytes,
            height=item.file.height,
            width=item.file.width,
            split="production",
        )
        [image_id] = catalog.add_images(connection, inspector.detector.category_id, root_id, [new])
        result[n] = stored_images(connection, [image_id])[image_id]
    ids = {image.id: n for n, image in enumerate(result) if image is not None}
    store_image_embeddings(
        connection,
        inspector.detector.extractor_id,
        list(ids),
        np.stack([judged[n].embedding for n in ids.values()]),
    )
    return result


def _with_image(judged: Judged, image: StoredImage | None) -> Inspection:
    if image is None:
        return judged.inspection
    return replace(
        judged.inspection,
        image_id=image.id,
        label=image.label,
        defect_type=image.defect_type,
        mask_path=image.mask_path and os.path.join(_root_of(image), image.mask_path),
    )


def _root_of(image: StoredImage) -> str:
    return image.path.removesuffix(image.relative_path)
