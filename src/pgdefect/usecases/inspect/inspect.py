"""Judge images with a category's active detector, and store what it says."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from pgdefect.core.config import Settings
from pgdefect.core.errors import DatasetError, ImageError, UsageError
from pgdefect.core.json_shapes import failed_json, inspection_json
from pgdefect.core.progress import Progress, silent
from pgdefect.core.types import (
    Defect,
    Detector,
    DetectorKind,
    Inspection,
    Skipped,
    StoredImage,
)
from pgdefect.core.wording import blank, command, option
from pgdefect.core.words import SPLITS, check_word
from pgdefect.db.connection.engine import Database
from pgdefect.db.connection.row_locks import keep_detector
from pgdefect.db.records.defects import store_defects
from pgdefect.db.records.inspections import store_inspections, store_votes
from pgdefect.db.records.patches import store_image_patches
from pgdefect.db.search.queries import images_of, stored_images
from pgdefect.usecases.common import log
from pgdefect.usecases.common.files import Listed, list_images
from pgdefect.usecases.common.files_seen import FilesSeen
from pgdefect.usecases.common.patch_search import SearchKind
from pgdefect.usecases.common.stored_files import only_unchanged
from pgdefect.usecases.inspect.defects import DefectFinder, Voter
from pgdefect.usecases.inspect.event_keys import Run, open_run, root_of
from pgdefect.usecases.inspect.inspector import Inspector, Judged
from pgdefect.usecases.inspect.photo_context import (
    ContextSource,
    PhotoContext,
    manifest_files,
    read_contexts,
)
from pgdefect.usecases.inspect.record_files import matching, record_files
from pgdefect.vision.images.preprocess import Preprocessing


@dataclass(frozen=True)
class InspectReport:
    """Judgements in the order of the files, and the files that could not be read.

    Attributes:
        problems: a line for whatever needs one.
        skipped: files that were left out, by suffix and reason.
        resumed: how many of the judgements were stored before, by the run that this one resumes or
            under the same event key.
    """

    category: str
    detector: Detector
    preprocessing: Preprocessing
    inspections: tuple[Inspection, ...]
    failed: tuple[tuple[str, str], ...]
    problems: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    resumed: int = 0

    def to_json(self) -> dict[str, Any]:
        """Judgements as plain values, without the maps."""
        return {
            "category": self.category,
            "detector_id": self.detector.id,
            "kind": self.detector.kind,
            "threshold": self.detector.threshold,
            "inspections": [inspection_json(item) for item in self.inspections],
            "failed": failed_json(self.failed),
            "problems": self.problems,
            "skipped": self.skipped,
            "resumed": self.resumed,
        }


def inspect(
    database: Database,
    settings: Settings,
    category: str,
    paths: Sequence[Path] = (),
    *,
    split: str | None = None,
    store: bool = True,
    keep_patches: bool = False,
    defects: bool = True,
    search: SearchKind | None = None,
    kind: DetectorKind | None = None,
    inspector: Inspector | None = None,
    event_key: str | None = None,
    station: str | None = None,
    context: ContextSource = ContextSource(),
    progress: Progress = silent,
    on_judged: Callable[[Inspection], None] = lambda inspection: None,
) -> InspectReport:
    """Judge files and folders, or stored images of one split, with the active detector.

    `kind` and `search` are `Inspector`'s; to call this repeatedly, make one and pass
    it as `inspector` instead, which stays with its detector when another is activated. Anomalous
    images, by verdict or by what is known of them, get a defect embedding and regions, and a
    guess at the type of their defect; not so without `defects`, which leaves what is stored of
    them as it is (`pgdefect embed` makes them later). `keep_patches` stores all patch embeddings,
    too. Each inspection is an event in the log (`usecases.common.log`), with the time of its
    stages.

    Files that are new to the category are recorded as production images. An inspection is an
    event: it is added and changes none before it. Stored batch by batch: interrupted, what was
    judged is kept, and the same call resumes the run, inspecting the rest. A run that has
    finished is not resumed: the same call then adds re-inspections, unless `event_key` names
    the request, whose photographs are judged once however often it is made (`event_keys`).
    `station` is where it was made, the database login if it is not given. A file that holds
    something else than what was recorded of it fails, so that one photograph's verdict never
    stands for another's.

    `context` says what is known of the photographs besides: part, time taken, attributes. It is
    read before anything is judged, and added to what is recorded of production images; a file
    of which something else was recorded fails. Without paths its manifest names the files.

    Raises:
        UnknownCategory, NoActiveDetector, UsageError; DatasetError: nothing to inspect.
    """
    check_word("split", split, SPLITS)
    if paths and split:
        raise UsageError(f"{option('split')} is for stored images; leave it out when naming files")
    if inspector is None:
        inspector = Inspector(database, settings, category, search, kind)
    elif inspector.detector.category != category or search or kind:
        raise UsageError(
            f"the inspector given is of {inspector.detector.category!r}, with a search and a kind "
            "of its own; name that category, and neither search nor kind"
        )
    if keep_patches and not store:
        raise UsageError(
            f"{option('keep_patches')} stores them, and {option('store', False)} stores nothing; "
            "choose one"
        )
    if keep_patches and not inspector.kind.has_bank:
        raise UsageError(
            f"the detector of {category!r} is {inspector.kind.noun}, which makes no patch "
            f"embeddings; leave out {option('keep_patches')}"
        )
    if event_key is not None and not store:
        raise UsageError(
            f"{option('event_key')} names what is stored, and {option('store', False)} stores "
            "nothing"
        )
    if context.manifest is not None and not paths:
        paths = manifest_files(context.manifest)
    if context and not (paths and store):
        raise UsageError(
            f"{option('attributes')}, {option('manifest')}, {option('path_pattern')} and "
            f"{option('exif_time')} are for files whose inspections are stored"
        )
    finder = inspector.defect_finder if defects and inspector.finds_defects else None
    listed, known, order = _queue(database, inspector, category, paths, split)
    files = listed.files
    contexts = read_contexts(context, list(files))
    run = None
    if store:
        asked = {"split": split, "defects": defects, "patches": keep_patches, "station": station}
        run = open_run(database, inspector, event_key, paths, asked)
    inspections: list[tuple[int, Inspection]] = []
    if run is not None and run.before:
        said = {n: run.stored(files[n], known.get(files[n])) for n in order}
        inspections += [
            (n, replace(item, gray_scale=inspector.gray_scale))
            for n, item in said.items()
            if item is not None
        ]
        order = [n for n in order if said[n] is None]
    resumed = len(inspections)
    failed: list[tuple[str, str]] = []
    seen = FilesSeen(inspector.gray_scale or {}, copies=False)

    def on_error(index: int, error: ImageError) -> None:
        failed.append((files[order[index]], str(error)))
        log.failure("unreadable", category=category, path=failed[-1][0], reason=failed[-1][1])

    ordered = [files[n] for n in order]
    accept = only_unchanged([known[path] for path in ordered]) if known else None
    for batch in inspector.judge(ordered, on_error, accept):
        judged = [item for _, item in batch]
        began = time.perf_counter()
        results = database.transact(
            partial(
                _look_and_store,
                *(inspector, finder, judged, known, store, keep_patches),
                run=run,
                station=station,
                contexts=contexts,
            )
        )
        store_ms = 1000 * (time.perf_counter() - began) / len(batch)
        for (index, item), result in zip(batch, results, strict=True):
            if isinstance(result, ImageError):
                on_error(index, result)
                continue
            inspections.append((order[index], result))
            if paths:
                seen.add(result.path, item.file)
            _log(item, result, store_ms)
            on_judged(result)
        progress("inspect", len(inspections) + len(failed), len(files))
    inspections.sort(key=lambda item: item[0])
    found = [item for _, item in inspections]
    if finder:
        found = _with_votes(database, inspector, found, store)
    if run is not None:
        run.finish(database)
    return InspectReport(
        category,
        inspector.detector,
        inspector.preprocessing,
        tuple(found),
        tuple(failed),
        (*listed.problems, *seen.problems(), *_context_left_out(database, contexts, found)),
        listed.skipped,
        resumed,
    )


def _context_left_out(
    database: Database, contexts: Mapping[str, PhotoContext], inspections: Sequence[Inspection]
) -> list[str]:
    """A line where something was said of images of a data set, which keep what that says."""
    ids = [item.image_id for item in inspections if item.image_id is not None]
    if not contexts or not ids:
        return []
    with database.connect() as connection:
        stored = stored_images(connection, ids)
    kept = [stored[n] for n in dict.fromkeys(ids) if n in stored]
    kept = [image for image in kept if image.split != "production"]
    if not kept:
        return []
    return [
        f"{len(kept)} of the images belong to a data set, {kept[0].path!r} first: the attributes, "
        "parts and times given were not recorded for them; say them in the manifest of the data "
        f"set and run: {command('ingest', blank('MANIFEST'), accept_changes=True)}"
    ]


def _look_and_store(
    inspector: Inspector,
    finder: DefectFinder | None,
    judged: Sequence[Judged],
    known: dict[str, StoredImage],
    store: bool,
    keep_patches: bool,
    connection: Connection,
    run: Run | None = None,
    station: str | None = None,
    contexts: Mapping[str, PhotoContext] | None = None,
) -> list[Inspection | ImageError]:
    """What a batch's images are known to be, and where defective ones depart from normal; all of
    that with the verdicts is stored, if wanted. An error for a file that cannot be stored.
    """
    if store:
        keep_detector(connection, inspector.detector.id)
    images = matching(connection, inspector.detector.category, judged, known)
    if not store:
        return [*_looked_at(connection, finder, judged, images)]
    recorded = record_files(connection, inspector, judged, images, contexts or {})
    refused = {n: one for n, one in enumerate(recorded) if isinstance(one, ImageError)}
    ours = [item for n, item in enumerate(judged) if n not in refused]
    looked = _looked_at(
        connection, finder, ours, [one for one in recorded if isinstance(one, StoredImage)]
    )
    event_key = run.begin(connection) if run else None
    ids = store_inspections(connection, looked, event_key, station)
    _store_found(connection, inspector, ours, looked, finder is not None, keep_patches)
    stored = (replace(result, inspection_id=id_) for result, id_ in zip(looked, ids, strict=True))
    return [refused.get(n) or next(stored) for n in range(len(judged))]


def _looked_at(
    connection: Connection,
    finder: DefectFinder | None,
    judged: Sequence[Judged],
    images: Sequence[StoredImage | None],
) -> list[Inspection]:
    return [
        _with_image(
            item,
            image,
            finder.defect(connection, item.embedded_patches)
            if finder and _is_defective(item, image)
            else None,
        )
        for item, image in zip(judged, images, strict=True)
    ]


def _log(judged: Judged, result: Inspection, store_ms: float) -> None:
    """One event an inspection; store_ms, a share of its batch's, has the second look in it."""
    if not log.wanted():
        return
    stages = {
        "decode_ms": judged.file.decode_ms,
        "extract_ms": judged.extract_ms,
        "search_ms": judged.search_ms,
        "store_ms": store_ms,
    }
    log.event(
        "inspected",
        category=result.category,
        detector_id=result.detector_id,
        image_id=result.image_id,
        inspection_id=result.inspection_id,
        path=result.path,
        verdict=result.verdict,
        raw_score=result.raw_score,
        normalized_score=result.normalized_score,
        threshold=result.threshold,
        search=result.search,
        **{name: round(value, 2) for name, value in stages.items()},
    )


def _queue(
    database: Database,
    inspector: Inspector,
    category: str,
    paths: Sequence[Path],
    split: str | None,
) -> tuple[Listed, dict[str, StoredImage], list[int]]:
    """The files to inspect, the stored images they are known to be, the order to take them in."""
    if paths:
        listed = list_images(paths)
        return listed, {}, list(range(len(listed.files)))
    stored = images_of(database, category, split=split)
    if not stored:
        which = f"{split} images" if split else "images"
        raise DatasetError(
            f"category {category!r} has no {which}; name files or folders to inspect, or add "
            f"some with: {command('ingest', blank('PATH'), category=category)}"
        )
    sizes = [inspector.preprocessing.input_size_of((i.height, i.width)) for i in stored]
    # A batch holds inputs of one size.
    order = sorted(range(len(stored)), key=sizes.__getitem__)
    paths_of = {image.path: image for image in stored}
    return Listed(tuple(image.path for image in stored), (), ()), paths_of, order


def _is_defective(judged: Judged, image: StoredImage | None) -> bool:
    return judged.inspection.is_anomalous or (
        image is not None and image.known_label == "anomalous"
    )


def _store_found(
    connection: Connection,
    inspector: Inspector,
    judged: Sequence[Judged],
    results: Sequence[Inspection],
    defects: bool,
    keep_patches: bool,
) -> None:
    """What was found in inspected images: defects, patch embeddings."""
    detector = inspector.detector
    # One file may lie in the batch under two names.
    first = {result.image_id: n for n, result in reversed(list(enumerate(results)))}
    image_ids = [image_id for image_id in first if image_id is not None]
    if defects:
        store_defects(
            connection,
            detector.extractor_id,
            detector.id,
            image_ids,
            [results[first[image_id]].defect for image_id in image_ids],
        )
    if keep_patches:
        patches = [judged[first[image_id]].patches for image_id in image_ids]
        store_image_patches(
            connection,
            detector.extractor_id,
            image_ids,
            [one for one in patches if one is not None],
        )


def _with_votes(
    database: Database, inspector: Inspector, inspections: Sequence[Inspection], store: bool
) -> list[Inspection]:
    """Guess at defect types last, when all that this run found can be asked."""
    voter = Voter(database, inspector.detector)
    results, votes = list(inspections), {}
    for n, item in enumerate(inspections):
        # One that was stored before may have its vote, of its own time.
        if item.defect is None or item.vote is not None:
            continue
        vote = voter.vote(item.defect, item.image_id)
        results[n] = replace(item, vote=vote)
        if vote is not None and item.inspection_id is not None:
            votes[item.inspection_id] = vote
    if store and votes:
        database.transact(partial(store_votes, detector_id=inspector.detector.id, votes=votes))
    return results


def _with_image(judged: Judged, image: StoredImage | None, defect: Defect | None) -> Inspection:
    if image is None:
        return replace(judged.inspection, defect=defect)
    return replace(
        judged.inspection,
        defect=defect,
        image_id=image.id,
        known_label=image.known_label,
        known_defect_type=image.known_defect_type,
        mask_path=image.mask_path and os.path.join(root_of(image), image.mask_path),
    )
