"""A project: one database, and what can be done with it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import psycopg

from pgdefect.api.images import Image, PathLike, in_memory, is_path
from pgdefect.api.results import (
    Evaluation,
    Inspection,
    Inspections,
    SearchResult,
    inspection_columns,
)
from pgdefect.api.tables import Table, frame
from pgdefect.core.config import Settings, load_settings
from pgdefect.core.detector_kinds import DEFAULT_KIND
from pgdefect.core.errors import ImageError, SchemaOutOfDate, UsageError
from pgdefect.core.progress import Progress, silent
from pgdefect.core.types import DetectorKind, SearchBy
from pgdefect.core.wording import option
from pgdefect.db.connection.engine import Database, driver, open_database
from pgdefect.db.records.detectors import active_detector, active_version
from pgdefect.db.records.summaries import (
    CategorySummary,
    DetectorSummary,
    list_categories,
    list_detectors,
)
from pgdefect.db.schema.schema import require_current, upgrade
from pgdefect.usecases.common.patch_search import SearchKind
from pgdefect.usecases.evaluate.evaluate import EvaluateOptions, evaluate
from pgdefect.usecases.ingest import IngestReport, ingest, ingest_all
from pgdefect.usecases.inspect.inspect import inspect
from pgdefect.usecases.inspect.inspector import Inspector
from pgdefect.usecases.inspect.picture import inspect_picture
from pgdefect.usecases.search.search import Query, SearchOptions, search
from pgdefect.usecases.threshold import Rule, ThresholdReport, change_threshold, show_threshold
from pgdefect.usecases.train.choose import train_with, training_options

if TYPE_CHECKING:
    import pandas

    from pgdefect.usecases.train.report import TrainingReport


def open(url: str | None = None, *, data_dir: PathLike | None = None) -> Project:
    """Open a project, which is one database.

    Args:
        url: Of a Postgres, ``postgresql://user@host/name``. Without one the settings decide
            (PGDEFECT_DATABASE_URL, pgdefect.toml); without those, the embedded Postgres is
            started, and its schema created or upgraded.
        data_dir: Where the embedded Postgres keeps its data.

    Returns:
        The project; close it, or use it in a ``with`` statement. The embedded server goes on
        running, as after a command.

    Raises:
        UsageError: the settings cannot be read.
        DatabaseError: there is no such server, or no embedded one can be started.
        SchemaOutOfDate: the database at `url` was made by another version.
    """
    settings = load_settings(database_url=url, data_dir=data_dir)
    database = open_database(settings)
    try:
        require_current(database)
    except SchemaOutOfDate:
        if settings.database_url is not None:
            database.dispose()
            raise
        # The embedded server is ours alone: nobody else decides when it is upgraded.
        upgrade(database)
    except BaseException:
        database.dispose()
        raise
    return Project(database, settings)


class Project:
    """One database of categories, images, detectors and inspections.

    Made by `pgdefect.open`. The methods do what the commands of the same names do, with the same
    parameters. They may be called from several threads.
    """

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database, self._settings = database, settings
        self._inspectors: dict[tuple[str, DetectorKind | None], Inspector] = {}
        self._lock = Lock()

    @property
    def url(self) -> str:
        """Where the database is, without a password."""
        return self._database.safe_url

    def close(self) -> None:
        """Close the connections and drop what was loaded."""
        self._inspectors.clear()
        self._database.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Project({self.url!r})"

    # -- data sets and training -----------------------------------------------------------

    def ingest(
        self,
        path: PathLike,
        category: str,
        *,
        parts: PathLike | None = None,
        split: str | None = None,
        label: str | None = None,
        accept_changes: bool = False,
        progress: Progress = silent,
    ) -> IngestReport:
        """Record a category's images: where they are, what they show. Nothing is copied.

        Args:
            path: An MVTec-style folder, a folder of images, or a CSV manifest.
            category: The product's name.
            parts: A CSV file with the columns path and part (the physical part).
            split: Of a plain folder: train (the default) or test.
            label: Of a plain folder: normal (the default) or anomalous.
            accept_changes: Update changed files, retire vanished ones.
            progress: Called with stage, done and total.

        Raises:
            DatasetError: the path holds no data set.
            UsageError: a setting cannot be used.
        """
        return ingest(
            self._database,
            Path(path),
            category,
            parts=None if parts is None else Path(parts),
            split=split,
            label=label,
            accept_changes=accept_changes,
            progress=progress,
        )

    def ingest_all(
        self, root: PathLike, *, accept_changes: bool = False, progress: Progress = silent
    ) -> tuple[IngestReport, ...]:
        """Record every category folder under `root`, each under its own name."""
        found = ingest_all(
            self._database, Path(root), accept_changes=accept_changes, progress=progress
        )
        return tuple(found)

    def train(
        self,
        category: str,
        *,
        kind: DetectorKind = DEFAULT_KIND,
        progress: Progress = silent,
        **settings: Any,
    ) -> TrainingReport:
        """Learn what is normal from a category's normal training images.

        The new detector becomes the active one of its kind; older ones are kept.

        Args:
            category: The product's name.
            kind: patchcore (the default) or efficient_ad.
            progress: Called with stage, done and total.
            settings: As ``pgdefect train --help`` lists them, with underscores: ``backbone``,
                ``image_size`` (a side in pixels, or `(height, width)`), ``coreset_ratio``,
                ``max_vectors``, ``seed``, …

        Raises:
            UsageError: there is no such setting, or a value cannot be used.
            UnknownCategory, TooFewImages, WeightsError, TrainingError.
            MissingExtra: the extra ``train`` is not installed.
        """
        options = training_options(kind, settings)
        return train_with(self._database, self._settings, category, options, progress=progress)

    # -- judging --------------------------------------------------------------------------

    def inspect(
        self,
        image: Image,
        category: str,
        *,
        name: str | None = None,
        store: bool | None = None,
        defects: bool = True,
        keep_patches: bool = False,
        kind: DetectorKind | None = None,
        event_key: str | None = None,
        station: str | None = None,
    ) -> Inspection:
        """Say whether one image is anomalous, and where.

        The detector, with its memory bank, is loaded at the first call for a category and kept
        until another is activated or its threshold changes, which each call looks up; the bank
        is searched exactly, in memory.

        Args:
            image: A file's path; the bytes of an image file; a NumPy array uint8
                `(height, width)` or `(height, width, 3)`, RGB; or a Pillow image.
            category: The product shown.
            name: What to call an image in memory.
            store: Keep the result. A file's is kept unless this is False. An image in memory
                has no file that its row could point to, so that nothing is stored of it.
            defects: Look at an anomalous image a second time: regions, and a guess at the type.
            keep_patches: Store every patch embedding, too.
            kind: Which detector, where both kinds are active.
            event_key: Names this request: made again, it stores nothing twice.
            station: Where this is, kept with what is stored.

        Raises:
            ImageError: the image cannot be read.
            UnknownCategory, NoActiveDetector.
        """
        inspector = self._inspector(category, kind)
        if not is_path(image):
            if store or keep_patches or event_key is not None:
                raise UsageError(
                    "an image in memory has no file that a stored row could point to: save it "
                    f"and give its path, or leave out {option('store')}, "
                    f"{option('keep_patches')} and {option('event_key')}"
                )
            picture = in_memory(image, name, inspector.gray_scale)
            judged = inspect_picture(self._database, inspector, picture, defects=defects)
            return Inspection(judged, inspector.preprocessing, picture.pixels)
        path = Path(os.fspath(image))  # type: ignore[arg-type]
        if path.is_dir():
            raise UsageError(f"{str(path)!r} is a folder; inspect_all takes folders")
        report = inspect(
            self._database,
            self._settings,
            category,
            [path],
            store=store is not False,
            defects=defects,
            keep_patches=keep_patches,
            inspector=inspector,
            event_key=event_key,
            station=station or self._settings.station,
        )
        if report.failed:
            raise ImageError(report.failed[0][1])
        return Inspection(report.inspections[0], report.preprocessing)

    def inspect_all(
        self,
        paths: Sequence[PathLike] = (),
        category: str | None = None,
        *,
        split: str | None = None,
        store: bool = True,
        defects: bool = True,
        keep_patches: bool = False,
        kind: DetectorKind | None = None,
        event_key: str | None = None,
        station: str | None = None,
        progress: Progress = silent,
    ) -> Inspections:
        """Inspect files and folders, or, without paths, the category's stored images.

        Args:
            paths: Files and folders.
            category: The product shown.
            split: Of stored images: only these.
            store, defects, keep_patches, kind, event_key, station: As for `inspect`.
            progress: Called with stage, done and total.

        Raises:
            UnknownCategory, NoActiveDetector; DatasetError: nothing to inspect.
        """
        if category is None:
            raise UsageError(f"name the {option('category')} that the images show")
        report = inspect(
            self._database,
            self._settings,
            category,
            [Path(path) for path in paths],
            split=split,
            store=store,
            defects=defects,
            keep_patches=keep_patches,
            inspector=self._inspector(category, kind),
            event_key=event_key,
            station=station or self._settings.station,
            progress=progress,
        )
        found = tuple(Inspection(one, report.preprocessing) for one in report.inspections)
        return Inspections(found, inspection_columns, report.failed, report.problems)

    def search(
        self,
        query: Image | None = None,
        *,
        category: str | None = None,
        k: int = 10,
        by: SearchBy | None = None,
        like: Sequence[PathLike] = (),
        unlike: Sequence[PathLike] = (),
        crop: tuple[int, int, int, int] | None = None,
        region: int | None = None,
        kind: DetectorKind | None = None,
        all_categories: bool = False,
        label: str | None = None,
        defect_type: str | None = None,
        split: str | None = None,
        part: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        attributes: Mapping[str, Any] | None = None,
        max_distance: float | None = None,
        exclude_part: bool = False,
        simulated: bool = False,
        fold: bool = True,
        exact: bool = False,
    ) -> SearchResult:
        """List the stored images most like one; nothing is stored.

        Args:
            query: A file's path; a stored image by id, end of path or start of sha256; or an
                image in memory, as for `inspect`, with its category.
            category: The product the query shows.
            k: How many images to list.
            by: What to compare: picture, defect or region. Defect for an anomalous image and
                picture for a normal one where it is not given.
            like, unlike: Further examples and counter-examples.
            crop: `(x, y, width, height)` in pixels: look for what this part shows.
            region: Instead of a query: the id of a stored region.
            kind: Which detector, where both kinds are active.
            all_categories: Also list images of other categories.
            label, defect_type, split, part, since, until, attributes, max_distance: Only
                images for which this holds.
            exclude_part: No image of the query's own part.
            simulated: Also list images with simulated defects.
            fold: Near-duplicates count as one.
            exact: Scan the table instead of its index.

        Raises:
            UnknownImage, Conflict: a word names no stored image, or several.
            UsageError: settings do not fit together.
        """
        pictures = {}
        words = [str(word) for word in like]
        if query is not None and is_path(query):
            words.insert(0, os.fspath(query))  # type: ignore[arg-type]
        elif query is not None:
            if category is None:
                raise UsageError(f"name the {option('category')} that an image in memory shows")
            picture = in_memory(query, None, self._inspector(category, kind).gray_scale)
            words.insert(0, str(picture.file.path))
            pictures[words[0]] = picture
        inspectors = {category: self._inspector(category, kind)} if category else None
        report = search(
            self._database,
            self._settings,
            Query(words, [str(word) for word in unlike], crop, region),
            SearchOptions(
                k=k,
                by=by,
                all_categories=all_categories,
                label=label,
                defect_type=defect_type,
                split=split,
                part=part,
                since=since,
                until=until,
                attributes=None if attributes is None else dict(attributes),
                max_distance=max_distance,
                exclude_part=exclude_part,
                simulated=simulated or split == "simulated",
                fold=fold,
                exact=exact,
                kind=kind,
            ),
            category=category,
            inspectors=inspectors,
            pictures=pictures,
        )
        first = next(iter(pictures.values()), None)
        return SearchResult(report, first.pixels if first else None)

    # -- figures and thresholds -----------------------------------------------------------

    def evaluate(
        self,
        category: str,
        *,
        split: str = "test",
        kind: DetectorKind | None = None,
        search: SearchKind = "exact",
        again: bool = False,
        drop_leaks: bool = False,
        bootstrap: int = 1000,
        seed: int = 0,
        progress: Progress = silent,
    ) -> Evaluation:
        """Measure the active detector on labeled images, and store the result.

        Args:
            category: The product's name.
            split: Whose labeled images.
            kind: Which detector, where both kinds are active.
            search: exact or hnsw: how what is missing is inspected.
            again: Inspect also what has been inspected already.
            drop_leaks: Leave out images whose part was trained on.
            bootstrap: Resamples that make the 95 % intervals; 0 makes none.
            seed: Decides which groups are resampled.
            progress: Called with stage, done and total.

        Raises:
            DatasetError: the split has no normal or no anomalous images.
            MissingExtra: the extra ``evaluate`` is not installed.
        """
        options = EvaluateOptions(
            split=split,
            kind=kind,
            search=search,
            again=again,
            drop_leaks=drop_leaks,
            bootstrap=bootstrap,
            seed=seed,
        )
        measured = evaluate(self._database, self._settings, category, options, progress=progress)
        return Evaluation(measured)

    def threshold(
        self,
        category: str,
        *,
        false_reject_rate: float | None = None,
        f1_max: bool = False,
        zero_escapes: bool = False,
        max_escape_rate: float | None = None,
        set: float | None = None,
        split: str = "test",
        simulated: bool = False,
        detector: int | None = None,
        rejudge: bool | None = None,
        dry_run: bool = False,
    ) -> ThresholdReport:
        """Show the threshold in force, or choose one by a rule; nothing is trained again.

        Args:
            category: Its active detector's threshold is meant.
            false_reject_rate: Rule: reject at most this share of normal images.
            f1_max: Rule: the best F1 on labeled images.
            zero_escapes: Rule: let no labeled defect through.
            max_escape_rate: Rule: let at most this share of defects through.
            set: Rule: this raw score.
            split: Whose labeled, inspected images are looked at.
            simulated: Look at simulated defects instead of real ones.
            detector: This one by id, instead of the active one.
            rejudge: Judge stored scores by the threshold, as new inspections; a change does
                unless this is False.
            dry_run: Say what would change; change nothing.

        Raises:
            UsageError: more than one rule, a value that is none, or no scores to go by.
        """
        rules: dict[Rule, float | None] = {}
        if false_reject_rate is not None:
            rules["false_reject_rate"] = false_reject_rate
        if f1_max:
            rules["f1_max"] = None
        if zero_escapes:
            rules["zero_escapes"] = None
        if max_escape_rate is not None:
            rules["max_escape_rate"] = max_escape_rate
        if set is not None:
            rules["given"] = set
        if len(rules) > 1:
            raise UsageError(f"name one rule, not {' and '.join(rules)}")
        if not rules:
            if dry_run:
                raise UsageError(f"{option('dry_run')} goes with a rule")
            return show_threshold(
                self._database,
                category,
                detector_id=detector,
                split=split,
                simulated=simulated,
                rejudge=rejudge is True,
            )
        [(rule, value)] = rules.items()
        return change_threshold(
            self._database,
            category,
            rule,
            value,
            detector_id=detector,
            split=split,
            simulated=simulated,
            dry_run=dry_run,
            rejudge=rejudge is not False,
        )

    # -- what there is --------------------------------------------------------------------

    def categories(self) -> Table[CategorySummary]:
        """Every category with its counts and active detector, by name."""
        return Table(tuple(list_categories(self._database)))

    def detectors(self, category: str | None = None) -> Table[DetectorSummary]:
        """Trained detectors, active and not; of one category only, if named."""
        return Table(tuple(list_detectors(self._database, category)))

    def sql(
        self, query: str, parameters: Sequence[Any] | Mapping[str, Any] = ()
    ) -> pandas.DataFrame:
        """The rows of a query, in a transaction that may only read.

        Args:
            query: One statement, for example ``SELECT * FROM defect.inspections``. With
                parameters, ``%s`` and ``%(name)s`` stand for them.
            parameters: Values, in order or by name.

        Raises:
            MissingExtra: pandas is not installed.
            UsageError: it is no query, or not one.
            PermissionDenied: it would write, or reads what this login may not.
        """
        frame([])  # rather than after a long query
        with self._database.connect() as connection:
            plain = driver(connection)
            plain.execute("SET TRANSACTION READ ONLY")
            try:
                # Prepared, it is one statement: none can follow that ends the transaction.
                cursor = plain.execute(query.encode(), parameters or None, prepare=True)
            except (psycopg.ProgrammingError, psycopg.DataError) as error:
                if isinstance(error, psycopg.errors.InsufficientPrivilege):
                    raise
                reason = str(error).splitlines()[0]
                raise UsageError(f"the server refuses the query: {reason}") from error
            if cursor.description is None:
                raise UsageError("the statement returns no rows; give a query")
            names = [column.name for column in cursor.description]
            rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        return frame(rows, names)

    def _inspector(self, category: str, kind: DetectorKind | None) -> Inspector:
        """The active detector, loaded; loaded anew where it is another one by now."""
        with self._lock:
            kept = self._inspectors.get((category, kind))
            if kept is not None:
                found = kept.detector
                version = (found.id, found.threshold, found.score_center)
                if active_version(self._database, category, kind) == version:
                    return kept
                del self._inspectors[category, kind]
            active = active_detector(self._database, category, kind)
            search: SearchKind | None = "exact" if active.bank_info else None
            made = Inspector(self._database, self._settings, category, search, active.kind)
            self._inspectors[category, kind] = made
            return made
