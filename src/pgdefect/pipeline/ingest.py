"""Record the images of a data set: what they are and where they lie."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from pgdefect.db import catalog
from pgdefect.db.engine import Database
from pgdefect.db.simulations import simulated_digests, simulated_paths
from pgdefect.errors import ImageError, UsageError
from pgdefect.pipeline.progress import Progress, silent
from pgdefect.threads import num_cpus
from pgdefect.vision.dataset import Dataset, ImageRecord, scan, scan_categories
from pgdefect.vision.image import ImageFile, probe_image, sha256_of

BATCH = 128


@dataclass(frozen=True)
class IngestReport:
    """What became of each file; paths are relative to `root`.

    changed: content differs from what was ingested; relabelled: the content is the same and
    the data set says otherwise of it (split, label, defect type, mask, group, attributes);
    vanished: ingested once and gone from disk; all three taken over only if `accepted`;
    failed: path and reason of files that are no readable image; problems: lines about the
    data set itself; simulated defects among its files are such, and never ingested.
    """

    category: str
    root: str
    added: int
    unchanged: int
    restored: int
    changed: tuple[str, ...]
    relabelled: tuple[str, ...]
    vanished: tuple[str, ...]
    accepted: bool
    failed: tuple[tuple[str, str], ...]
    problems: tuple[str, ...]


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
    groups: Path | None = None,
    split: str | None = None,
    label: str | None = None,
    accept_changes: bool = False,
    progress: Progress = silent,
) -> IngestReport:
    """Record a folder's or manifest's images under a category.

    Running it again adds what is new and nothing else. Files whose content changed,
    images of which something else is said now, and files that are gone are reported; with
    `accept_changes` the new content replaces the old, with what was computed from it, the
    new words the old ones, and vanished images are retired.

    Raises:
        DatasetError: the path holds no data set.
    """
    check_category_name(category)
    dataset = scan(path, groups=groups, split=split, label=label)
    return ingest_dataset(
        database, dataset, category, accept_changes=accept_changes, progress=progress
    )


def ingest_all(
    database: Database,
    root: Path,
    *,
    accept_changes: bool = False,
    progress: Progress = silent,
) -> list[IngestReport]:
    """Record every category folder under `root`, each under its own name.

    All are listed before the first is recorded: where one cannot be used, nothing is stored.
    """
    datasets = {}
    for name, folder in scan_categories(root).items():
        datasets[check_category_name(name)] = scan(folder)
    return [
        ingest_dataset(database, dataset, name, accept_changes=accept_changes, progress=progress)
        for name, dataset in datasets.items()
    ]


def ingest_dataset(
    database: Database,
    dataset: Dataset,
    category: str,
    *,
    accept_changes: bool = False,
    progress: Progress = silent,
) -> IngestReport:
    """Record the images of a data set already listed; see `ingest`."""
    root = str(dataset.root)
    with database.connect() as connection:
        known = catalog.known_images(connection, category, root)
        dataset = _without_simulated(dataset, simulated_paths(connection))
    added = unchanged = restored = 0
    changed: list[str] = []
    relabelled: list[str] = []
    failed: list[tuple[str, str]] = []
    drawn: list[str] = []
    done = 0
    with ThreadPoolExecutor(num_cpus()) as pool:
        for start in range(0, len(dataset.records), BATCH):
            records = dataset.records[start : start + BATCH]
            probes = list(pool.map(lambda record: _probe(dataset.root, record, known), records))
            digests = [found.sha256 for found in probes if isinstance(found, ImageFile)]
            with database.connect() as connection:
                simulated = simulated_digests(connection, digests)
            new: list[catalog.NewImage] = []
            replaced: list[tuple[int, catalog.NewImage]] = []
            back: list[int] = []
            said: list[tuple[int, catalog.Description]] = []
            for record, found in zip(records, probes, strict=True):
                match found:
                    case ImageError():
                        failed.append((record.path, str(found)))
                    case None:
                        before = known[record.path]
                        description = _description(record)
                        if description == before.description:
                            unchanged += 1
                        else:
                            relabelled.append(record.path)
                            said.append((before.id, description))
                        if before.retired and accept_changes:
                            back.append(before.id)
                    case ImageFile(sha256=digest) if digest in simulated:
                        drawn.append(record.path)
                    case ImageFile() if record.path in known:
                        changed.append(record.path)
                        image_id = known[record.path].id
                        replaced.append((image_id, _new_image(record, found)))
                        said.append((image_id, _description(record)))
                    case ImageFile():
                        new.append(_new_image(record, found))
                done += 1
                progress("ingest", done, len(dataset.records))
            if not (new or (accept_changes and (said or back))):
                continue
            with database.begin() as connection:
                category_id = catalog.ensure_category(connection, category)
                root_id = catalog.ensure_root(connection, root)
                catalog.add_images(connection, category_id, root_id, new)
                if accept_changes:
                    for image_id, image in replaced:
                        catalog.replace_content(connection, image_id, image)
                    for image_id, description in said:
                        catalog.describe_again(connection, image_id, description)
                    restored += catalog.set_images_retired(connection, back, False)
            added += len(new)
    vanished = _vanished(dataset, known)
    if accept_changes and vanished:
        with database.begin() as connection:
            catalog.set_images_retired(connection, [known[path].id for path in vanished], True)
    return IngestReport(
        category,
        root,
        added,
        unchanged,
        restored,
        tuple(changed),
        tuple(relabelled),
        tuple(vanished),
        accept_changes,
        tuple(failed),
        (*dataset.problems, *(f"{path!r} is a simulated defect; left out" for path in drawn)),
    )


def _without_simulated(dataset: Dataset, paths: set[str]) -> Dataset:
    """The data set without the simulated images and their masks that lie in its folder."""
    kept = tuple(r for r in dataset.records if str(dataset.root / r.path) not in paths)
    if not (count := len(dataset.records) - len(kept)):
        return dataset
    problem = f"{count} files are simulated defects or masks of theirs; left out"
    return replace(dataset, records=kept, problems=(*dataset.problems, problem))


def _vanished(dataset: Dataset, known: dict[str, catalog.KnownImage]) -> list[str]:
    """Known images that are neither listed nor on disk; a narrower manifest forgets none."""
    listed = {record.path for record in dataset.records}
    return sorted(
        path
        for path, image in known.items()
        if path not in listed and not image.retired and not os.path.lexists(dataset.root / path)
    )


def _probe(
    root: Path, record: ImageRecord, known: dict[str, catalog.KnownImage]
) -> ImageFile | ImageError | None:
    """None where the file is the one already known: it need not be decoded again."""
    path = root / record.path
    try:
        if record.path in known and sha256_of(path) == known[record.path].sha256:
            return None
        return probe_image(path)
    except ImageError as error:
        return error


def _description(record: ImageRecord) -> catalog.Description:
    return (
        record.split,
        record.label,
        record.defect_type,
        record.mask_path,
        record.group,
        record.attributes,
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
        group_name=record.group,
        attributes=record.attributes,
    )
