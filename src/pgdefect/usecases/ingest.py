"""Record the images of a data set: what they are and where they lie."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from sqlalchemy import Connection

from pgdefect.core.errors import ImageError, UsageError
from pgdefect.core.progress import Progress, silent
from pgdefect.core.threads import num_cpus
from pgdefect.core.types import FolderReading, Skipped
from pgdefect.db.connection.engine import Database
from pgdefect.db.connection.row_locks import lock_images
from pgdefect.db.records import catalog, lifecycle
from pgdefect.db.records.simulations import simulated_digests, simulated_paths
from pgdefect.usecases.common.files_seen import FilesSeen
from pgdefect.vision.images.dataset import (
    Dataset,
    ImageRecord,
    scan,
    scan_categories,
)
from pgdefect.vision.images.gray_scale import GrayScale
from pgdefect.vision.images.image import ImageFile, probe_image, sha256_of

BATCH = 128


@dataclass(frozen=True)
class IngestReport:
    """What became of each file; paths are relative to `root`.

    Attributes:
        changed: content differs from what was ingested.
        relabeled: the content is the same and the data set says otherwise of it (split, label,
            defect type, mask, part, attributes).
        vanished: ingested once and gone from disk; all three taken over only if `accepted`.
        failed: path and reason of files that are no readable image.
        problems: lines about the data set itself; simulated defects among its files are such, and
            never ingested.
        listed: how many images there are.
        folders: what each is taken as.
        skipped: files that are left out, by suffix and reason.
        dry_run: nothing was read or stored.
    """

    category: str
    root: str
    added: int
    unchanged: int
    restored: int
    changed: tuple[str, ...]
    relabeled: tuple[str, ...]
    vanished: tuple[str, ...]
    accepted: bool
    failed: tuple[tuple[str, str], ...]
    problems: tuple[str, ...]
    listed: int = 0
    folders: tuple[FolderReading, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    dry_run: bool = False


OnListed = Callable[[str, str, Sequence[FolderReading]], None]
"""Told of a category, its folder, and what is taken as what there, before anything is stored."""


def check_category_name(name: str) -> str:
    """Raises UsageError for a name that is empty, too long or not printable."""
    if not 1 <= len(name) <= 100 or not name.isprintable() or name != name.strip():
        raise UsageError(
            f"a category's name has 1 to 100 printable characters and no space at its ends, "
            f"not {name!r}"
        )
    return name


def ingest(
    database: Database,
    path: Path,
    category: str,
    *,
    parts: Path | None = None,
    split: str | None = None,
    label: str | None = None,
    said: Mapping[str, str] | None = None,
    accept_changes: bool = False,
    dry_run: bool = False,
    progress: Progress = silent,
    on_listed: OnListed = lambda category, root, folders: None,
) -> IngestReport:
    """Record a folder's or manifest's images under a category.

    Running it again adds what is new and nothing else. Files whose content changed,
    images of which something else is said now, and files that are gone are reported; with
    `accept_changes` the new content replaces the old, with what was computed from it, the
    new words the old ones, and vanished images are retired. What was judged or reviewed is
    history: it stays with a retired image of the old content, and the new content is a new one.

    Args:
        parts, split, label, said: as `scan` has them.
        dry_run: say what the folders are taken as, and stop there.
        on_listed: called with that before anything is stored.

    Raises:
        DatasetError: the path holds no data set, or one that can be read in two ways.
    """
    check_category_name(category)
    with database.connect() as connection:
        simulated = simulated_paths(connection)
    dataset = scan(
        path,
        parts=parts,
        split=split,
        label=label,
        said=said,
        category=category,
        simulated=simulated,
    )
    on_listed(category, str(dataset.root), dataset.folders)
    return ingest_dataset(
        database,
        dataset,
        category,
        accept_changes=accept_changes,
        dry_run=dry_run,
        progress=progress,
    )


def ingest_all(
    database: Database,
    root: Path,
    *,
    said: Mapping[str, str] | None = None,
    accept_changes: bool = False,
    dry_run: bool = False,
    progress: Progress = silent,
    on_listed: OnListed = lambda category, root, folders: None,
) -> list[IngestReport]:
    """Record every category folder under `root`, each under its own name.

    All are listed before the first is recorded: where one cannot be used, nothing is stored.
    """
    with database.connect() as connection:
        simulated = simulated_paths(connection)
    datasets = {}
    for name, folder in scan_categories(root).items():
        datasets[check_category_name(name)] = scan(
            folder, said=said, category=name, simulated=simulated
        )
    for name, dataset in datasets.items():
        on_listed(name, str(dataset.root), dataset.folders)
    return [
        ingest_dataset(
            database,
            dataset,
            name,
            accept_changes=accept_changes,
            dry_run=dry_run,
            progress=progress,
        )
        for name, dataset in datasets.items()
    ]


def ingest_dataset(
    database: Database,
    dataset: Dataset,
    category: str,
    *,
    accept_changes: bool = False,
    dry_run: bool = False,
    progress: Progress = silent,
) -> IngestReport:
    """Record the images of a data set already listed; see `ingest`."""
    root = str(dataset.root)
    with database.connect() as connection:
        dataset = _with_similar_names(connection, dataset, category)
        scale = catalog.gray_scale(connection, category)
        known = catalog.known_images(connection, category, root)
        dataset = _without_simulated(dataset, simulated_paths(connection))
        elsewhere = catalog.known_elsewhere(connection, category, root)
    dataset = _without_known_elsewhere(dataset, elsewhere, known)
    if dry_run:
        return replace(_report(dataset, category, _Outcome()), dry_run=True)
    total = _Outcome()
    seen = FilesSeen(scale.white if scale.settled else None)
    failed: list[tuple[str, str]] = []
    drawn: list[str] = []
    done = 0
    with ThreadPoolExecutor(num_cpus()) as pool:
        for start in range(0, len(dataset.records), BATCH):
            records = dataset.records[start : start + BATCH]
            probes = list(pool.map(lambda one: _probe(dataset.root, one, known, seen), records))
            digests = [found.sha256 for found in probes if isinstance(found, ImageFile)]
            with database.connect() as connection:
                simulated = simulated_digests(connection, digests)
            files: list[tuple[ImageRecord, ImageFile | None]] = []
            for record, found in zip(records, probes, strict=True):
                match found:
                    case ImageError():
                        failed.append((record.path, str(found)))
                    case ImageFile(sha256=digest) if digest in simulated:
                        drawn.append(record.path)
                    case _:
                        files.append((record, found))
                        if found is not None:
                            seen.add(record.path, found)
                done += 1
                progress("ingest", done, len(dataset.records))
            compared = _compare(files, known)
            total.add(compared.outcome)
            if compared.new or (accept_changes and compared.to_accept):
                total.add(
                    database.transact(
                        partial(_store, category, root, compared, accept_changes, seen.widest)
                    )
                )
    if total.added or not scale.settled:
        database.transact(partial(catalog.settle_gray_scale, category=category))
    vanished = _vanished(dataset, known)
    if accept_changes and vanished:
        gone = [known[path].id for path in vanished]
        database.transact(partial(lifecycle.set_images_retired, image_ids=gone, retired=True))
    told = tuple(f"{path!r} is a simulated defect; left out" for path in drawn)
    return replace(
        _report(dataset, category, total),
        vanished=tuple(vanished),
        accepted=accept_changes,
        failed=tuple(failed),
        problems=(*dataset.problems, *told, *seen.problems()),
    )


def _report(dataset: Dataset, category: str, outcome: _Outcome) -> IngestReport:
    return IngestReport(
        category,
        str(dataset.root),
        outcome.added,
        outcome.unchanged,
        outcome.restored,
        tuple(outcome.changed),
        tuple(outcome.relabeled),
        vanished=(),
        accepted=False,
        failed=(),
        problems=dataset.problems,
        listed=len(dataset.records),
        folders=dataset.folders,
        skipped=dataset.skipped,
    )


def _with_similar_names(connection: Connection, dataset: Dataset, category: str) -> Dataset:
    """The data set with a line where the category is new and called nearly like another."""
    names = catalog.category_names(connection)
    alike = [name for name in names if _plain(name) == _plain(category)]
    if category in names or not alike:
        return dataset
    problem = (
        f"category {category!r} is new, beside {', '.join(map(repr, alike))}: names are told "
        "apart by upper and lower case and by spaces"
    )
    return replace(dataset, problems=(*dataset.problems, problem))


def _plain(name: str) -> str:
    return "".join(character for character in name.casefold() if character.isalnum())


@dataclass
class _Outcome:
    """Counts and paths of an `IngestReport`, of some of its files."""

    added: int = 0
    unchanged: int = 0
    restored: int = 0
    changed: list[str] = field(default_factory=list)
    relabeled: list[str] = field(default_factory=list)

    def add(self, other: _Outcome) -> None:
        self.added += other.added
        self.unchanged += other.unchanged
        self.restored += other.restored
        self.changed += other.changed
        self.relabeled += other.relabeled


@dataclass
class _Compared:
    """Files beside what is known of them: new ones, and what is to be taken over of the others.

    Attributes:
        replaced: by image id, of those with other content.
        said: by image id, what is said now of those and of relabeled ones.
        back: ids of retired ones that are there again.
    """

    new: list[tuple[ImageRecord, ImageFile]] = field(default_factory=list)
    replaced: dict[int, catalog.NewImage] = field(default_factory=dict)
    said: dict[int, catalog.Description] = field(default_factory=dict)
    back: list[int] = field(default_factory=list)
    outcome: _Outcome = field(default_factory=_Outcome)

    @property
    def to_accept(self) -> set[int]:
        return {*self.said, *self.back}


def _compare(
    files: Iterable[tuple[ImageRecord, ImageFile | None]], known: dict[str, catalog.KnownImage]
) -> _Compared:
    """A file that is None has the content that is known of it."""
    result = _Compared()
    for record, file in files:
        before = known.get(record.path)
        if before is None:
            assert file is not None
            result.new.append((record, file))
            continue
        description = _description(record)
        if file is not None and file.sha256 != before.sha256:
            result.outcome.changed.append(record.path)
            result.replaced[before.id] = _new_image(record, file)
            result.said[before.id] = description
            continue
        if description == before.description:
            result.outcome.unchanged += 1
        else:
            result.outcome.relabeled.append(record.path)
            result.said[before.id] = description
        if before.retired:
            result.back.append(before.id)
    return result


def _store(
    category: str,
    root: str,
    compared: _Compared,
    accept: bool,
    white: GrayScale,
    connection: Connection,
) -> _Outcome:
    """Store new images, and the rest if accepted; returns what that adds to the outcome.

    An image that somebody else has recorded meanwhile is compared with what they recorded.

    Args:
        white: the gray scale that holds all files so far, stored where none is settled.
    """
    outcome = _Outcome()
    todo = [compared]
    if compared.new:
        category_id = catalog.ensure_category(connection, category)
        if white:
            catalog.widen_gray_scale(connection, category_id, white)
        root_id = catalog.ensure_root(connection, root)
        inserted = catalog.insert_images(
            connection, category_id, root_id, [_new_image(*one) for one in compared.new]
        )
        outcome.added = len(inserted)
        if late := [one for one in compared.new if one[0].path not in inserted]:
            again = _compare(late, catalog.known_images(connection, category, root))
            outcome.add(again.outcome)
            todo.append(again)
    if accept:
        lock_images(connection, {image_id for one in todo for image_id in one.to_accept})
        for one in todo:
            now = {
                image_id: catalog.replace_content(connection, image_id, image)
                for image_id, image in sorted(one.replaced.items())
            }
            for image_id, description in one.said.items():
                catalog.describe_again(connection, now.get(image_id, image_id), description)
            outcome.restored += lifecycle.set_images_retired(connection, one.back, False)
    return outcome


def _without_simulated(dataset: Dataset, paths: set[str]) -> Dataset:
    """The data set without the simulated images and their masks that lie in its folder."""
    kept = tuple(r for r in dataset.records if str(dataset.root / r.path) not in paths)
    if not (count := len(dataset.records) - len(kept)):
        return dataset
    problem = f"{count} files are simulated defects or masks of theirs; left out"
    return replace(dataset, records=kept, problems=(*dataset.problems, problem))


def _without_known_elsewhere(
    dataset: Dataset, elsewhere: dict[str, str], known: dict[str, catalog.KnownImage]
) -> Dataset:
    """The data set without files that were ingested with a folder around it or within it."""
    kept, left_out = [], Counter[str]()
    for record in dataset.records:
        other = elsewhere.get(str(dataset.root / record.path))
        if other is None or record.path in known:
            kept.append(record)
        else:
            left_out[other] += 1
    problems = [
        f"{count} files are images of this category already, ingested with {other!r}; left out: "
        "ingest that folder to take up what changed"
        for other, count in sorted(left_out.items())
    ]
    return replace(dataset, records=tuple(kept), problems=(*dataset.problems, *problems))


def _vanished(dataset: Dataset, known: dict[str, catalog.KnownImage]) -> list[str]:
    """Known images that are neither listed nor on disk; a narrower manifest forgets none."""
    listed = {record.path for record in dataset.records}
    return sorted(
        path
        for path, image in known.items()
        if path not in listed and not image.retired and not os.path.lexists(dataset.root / path)
    )


def _probe(
    root: Path, record: ImageRecord, known: dict[str, catalog.KnownImage], seen: FilesSeen
) -> ImageFile | ImageError | None:
    """None where the file is the one already known: it need not be decoded again."""
    path = root / record.path
    try:
        if record.path in known and sha256_of(path) == known[record.path].sha256:
            return None
        return probe_image(path, {} if seen.scale is None else seen.scale)
    except ImageError as error:
        return error


def _description(record: ImageRecord) -> catalog.Description:
    return (
        record.split,
        record.label,
        record.defect_type,
        record.mask_path,
        record.part,
        record.attributes,
        record.taken_at,
    )


def _new_image(record: ImageRecord, file: ImageFile) -> catalog.NewImage:
    return catalog.NewImage(
        path=record.path,
        sha256=file.sha256,
        num_bytes=file.num_bytes,
        height=file.height,
        width=file.width,
        split=record.split,
        label=record.label,
        defect_type=record.defect_type,
        mask_path=record.mask_path,
        group_name=record.part,
        attributes=record.attributes,
        taken_at=record.taken_at,
    )
