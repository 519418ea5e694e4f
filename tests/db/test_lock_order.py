"""Two transactions at once, one stopped after each of its statements in turn: no deadlock.

The first is stopped after its n-th statement and the second runs until it ends or has to wait;
then the first goes on. This is done for every n, so that whatever two of these do in different
orders shows at some n, each time.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psycopg
import pytest
from rows import (
    add_defect_space,
    add_extractor,
    add_images,
    memory_bank,
    store,
    unit_vectors,
)
from sqlalchemy import Connection, text

from pgdefect.core.errors import Conflict, UnknownCategory, UnknownDetector
from pgdefect.core.types import AnomalousRegion, Defect, Inspection, PatchScores
from pgdefect.db.connection.engine import Database
from pgdefect.db.records import catalog, lifecycle
from pgdefect.db.records.bulk_load import load_image_embeddings
from pgdefect.db.records.detectors import active_detector
from pgdefect.db.records.extractors import store_image_embeddings
from pgdefect.db.records.inspections import store_votes
from pgdefect.db.records.reviews import review_image
from pgdefect.usecases import ingest
from pgdefect.usecases.inspect import embed
from pgdefect.usecases.inspect.inspect import _look_and_store
from pgdefect.usecases.inspect.inspector import Judged
from pgdefect.usecases.threshold import change_threshold
from pgdefect.vision.images.image import ImageFile

pytestmark = pytest.mark.slow

DIM = 8
GRID = (2, 2)
WAIT = 120.0
COUNTED = re.compile(
    r"INSERT|UPDATE|DELETE|ALTER|DROP|CREATE|FOR KEY|lock\(|shared\(|defect\.\w+\("
)
Change = Callable[["Line", Database, int], None]


class Finder:
    """Finds a defect in every image."""

    def defect(self, connection: Connection, image: object) -> Defect:
        [vector] = unit_vectors(1, 1, DIM)
        return Defect(vector, (AnomalousRegion((1, 1, 8, 8), 1, 0.25, 0.9, 0.9, vector),))


class Line:
    """Two categories with a detector each; `parts` is inspected, `others` is there to go."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.extractor_id = add_extractor(database, DIM)
        add_defect_space(database, self.extractor_id, DIM)
        self.learned = add_images(database, "parts", 5, path=lambda n: f"learned{n}.png")
        self.images = add_images(database, "parts", 3, split="test", sha256=hash_of)
        self.first, self.second = (self.train(seed) for seed in (1, 2))
        self.detector = active_detector(database, "parts")

    def train(self, seed: int, category: str = "parts", database: Database | None = None) -> int:
        bank = memory_bank(unit_vectors(seed, 12, DIM), self.learned)
        return store(database or self.database, category, self.extractor_id, bank)

    def judged(
        self, n: int, names: Sequence[str], detector_id: int | None = None, threshold: float = 0.5
    ) -> list[Judged]:
        """Images that are stored, by number, and new ones of folders x and y."""
        detector_id = detector_id or self.detector.id
        return [
            _judged(Path(f"/line/{n}/{name}/image.png"), name, detector_id, threshold)
            for name in names
        ]

    def look(self, database: Database, judged: list[Judged], detector_id: int | None = None) -> Any:
        detector = self.detector
        changed = SimpleNamespace(
            id=detector_id or detector.id,
            category="parts",
            category_id=detector.category_id,
            extractor_id=detector.extractor_id,
        )
        inspector = SimpleNamespace(detector=changed)
        work = partial(_look_and_store, inspector, Finder(), judged, {}, True, True)
        return database.transact(work)


def _judged(path: Path, name: str, detector_id: int, threshold: float) -> Judged:
    sha256 = hash_of(int(name)) if name.isdigit() else digest(str(path))
    scores = np.full(GRID, 0.9, dtype=np.float32)
    positions = np.zeros(GRID, dtype=np.int32)
    inspection = Inspection(
        path=str(path),
        category="parts",
        detector_id=detector_id,
        threshold=threshold,
        raw_score=0.9,
        normalized_score=0.9,
        scores=PatchScores(scores, positions, 0, 0, 0.9),
        worst_box=(0, 0, 8, 8),
        search="hnsw",
    )
    [embedding] = unit_vectors(1, 1, DIM)
    patches = np.ones((*GRID, DIM), dtype=np.float32)
    return Judged(ImageFile(path, sha256, 1, 64, 64), embedding, inspection, patches, 0.0, 0.0)


def digest(word: str) -> str:
    return hashlib.sha256(word.encode()).hexdigest()


def hash_of(number: int) -> str:
    return digest(f"image {number}")


@pytest.fixture
def line(database: Database) -> Line:
    return Line(database)


# -- what is done at once ------------------------------------------------------------------


def threshold_of(n: int) -> float:
    return 0.5 + 0.1 * (n % 2)


def inspects(line: Line, database: Database, n: int) -> None:
    line.look(database, line.judged(n, ["x", "0", "1", "y"], threshold=threshold_of(n)))


def inspects_backwards(line: Line, database: Database, n: int) -> None:
    line.look(database, line.judged(n, ["y", "1", "0", "x"], threshold=threshold_of(n)))


def votes(line: Line, database: Database, n: int) -> None:
    with line.database.connect() as connection:
        rows = connection.scalars(
            text(
                "SELECT DISTINCT ON (image_id) id FROM pgdefect.inspection "
                "WHERE image_id = ANY(:ids) ORDER BY image_id DESC, id DESC"
            ),
            {"ids": line.images},
        ).all()
    database.transact(partial(store_votes, detector_id=line.detector.id, votes=dict.fromkeys(rows)))


def embeds_defects(line: Line, database: Database, n: int) -> None:
    judged = line.judged(n, ["2", "1", "0"])
    work = partial(embed._store, Finder(), line.detector, line.images[::-1], judged)  # type: ignore[arg-type]
    database.transact(work)


def embeds_images(line: Line, database: Database, n: int) -> None:
    ids = [*line.images[::-1], *line.learned]
    work = partial(
        store_image_embeddings,
        extractor_id=line.extractor_id,
        image_ids=ids,
        embeddings=unit_vectors(2, len(ids), DIM),
    )
    database.transact(work)


def loads_embeddings(line: Line, database: Database, n: int) -> None:
    ids = np.array([*line.images[::-1], *line.learned])
    load_image_embeddings(database, line.extractor_id, ids, unit_vectors(2, len(ids), DIM))


def accepts_changes(line: Line, database: Database, n: int) -> None:
    said = ("test", "anomalous", f"scratch{n}", None, None, {}, None)
    changed = ingest._Compared(said={i: said for i in line.images[::-1]})  # type: ignore[misc]
    for number, image_id in reversed(list(enumerate(line.images[:2]))):
        changed.replaced[image_id] = catalog.NewImage("p", hash_of(number), 1, 64, 64, "test")
    database.transact(
        partial(ingest._store, "parts", "/nowhere/parts", changed, True, {"uint8": 255})
    )


def rejudges(line: Line, database: Database, n: int) -> None:
    change_threshold(database, "parts", "given", threshold_of(n), detector_id=line.detector.id)


def reviews(line: Line, database: Database, n: int) -> None:
    review_image(database, str(line.images[1]), "anomalous", defect_type="scratch", new_type=True)


def switches_banks(line: Line, database: Database, n: int) -> None:
    lifecycle.activate_detector(database, (line.first, line.second)[n % 2])


def trains(line: Line, database: Database, n: int) -> None:
    line.train(n, database=database)


def retires_images(line: Line, database: Database, n: int) -> None:
    with database.begin() as connection:
        lifecycle.set_images_retired(connection, line.images[::-1], retired=n % 2 == 0)


def deletes_an_image(line: Line, database: Database, n: int) -> None:
    with line.database.connect() as connection:
        found = connection.scalars(
            text("SELECT id FROM pgdefect.image WHERE sha256 = :sha"), {"sha": hash_of(1)}
        ).all()
    for image_id in found:
        lifecycle.delete_image(database, image_id)


def deletes_a_detector(line: Line, database: Database, n: int) -> None:
    with line.database.connect() as connection:
        newest = connection.scalar(text("SELECT max(id) FROM pgdefect.detector"))
    assert newest is not None
    lifecycle.delete_detector(database, newest)


def inspects_with_the_one_deleted(line: Line, database: Database, n: int) -> None:
    with line.database.connect() as connection:
        newest = connection.scalar(text("SELECT max(id) FROM pgdefect.detector"))
    assert newest is not None
    judged = line.judged(n, ["x", "0", "1", "2"], newest)
    line.look(database, judged, newest)


def deletes_a_category(line: Line, database: Database, n: int) -> None:
    lifecycle.delete_category(database, "others")


def adds_to_the_category(line: Line, database: Database, n: int) -> None:
    found = ingest._Compared()
    for name in ("b", "a"):
        record = SimpleNamespace(
            path=f"{name}{n}.png",
            split="train",
            label="normal",
            defect_type=None,
            mask_path=None,
            part=None,
            attributes={},
            taken_at=None,
        )
        found.new.append((record, ImageFile(Path(name), digest(f"{name}{n}"), 1, 64, 64)))  # type: ignore[arg-type]
    database.transact(
        partial(ingest._store, "others", "/nowhere/others", found, False, {"uint8": 255})
    )


def before_each(line: Line, n: int, changes: tuple[Change, Change]) -> None:
    """What some of them need: things to delete, embeddings that are not there yet."""
    with line.database.begin() as connection:
        connection.execute(text("DELETE FROM pgdefect.image_embedding"))
    add_images(line.database, "parts", 3, split="test", sha256=hash_of)
    add_images(line.database, "others", 3)
    if deletes_a_category in changes:
        line.train(n, "others")
    if deletes_a_detector in changes:
        newest = line.train(n)
        line.look(line.database, line.judged(n, ["0"], newest), newest)


INSPECTED_WITH = [
    inspects_backwards,
    votes,
    embeds_defects,
    embeds_images,
    loads_embeddings,
    accepts_changes,
    rejudges,
    reviews,
    switches_banks,
    trains,
    retires_images,
    deletes_an_image,
]
OTHERS = [
    (votes, rejudges),
    (embeds_defects, accepts_changes),
    (embeds_images, loads_embeddings),
    (accepts_changes, rejudges),
    (accepts_changes, retires_images),
    (trains, switches_banks),
    (trains, deletes_an_image),
    (rejudges, switches_banks),
    (rejudges, deletes_an_image),
    (trains, trains),
    (switches_banks, switches_banks),
    (rejudges, rejudges),
    (adds_to_the_category, adds_to_the_category),
    (adds_to_the_category, deletes_a_category),
    (inspects_with_the_one_deleted, deletes_a_detector),
    (deletes_a_detector, trains),
    (deletes_a_category, deletes_a_category),
]
PAIRS = [(inspects, other) for other in INSPECTED_WITH] + OTHERS
MAY_FAIL = {
    deletes_a_category: (UnknownCategory, UnknownDetector),
    deletes_an_image: (Conflict,),
    adds_to_the_category: (Conflict,),
    inspects_with_the_one_deleted: (Conflict,),
}
"""Where the other one has deleted what this needs."""


# -- one stopped, the other goes on --------------------------------------------------------


class Stop:
    """Stops whoever executes on its database's connections after the n-th statement."""

    def __init__(self, n: int = 0) -> None:
        self.left = n
        self.reached = threading.Event()
        self.go = threading.Event()

    def count(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.reached.set()
            assert self.go.wait(WAIT)


class Stoppable(Database):
    """The database as another process has it; what locks or writes is counted."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.stop = Stop()
        self.deadlocks: list[psycopg.Error] = []

    def _connect(self) -> psycopg.Connection[Any]:
        class Counting(psycopg.Cursor[Any]):
            def execute(cursor, query: Any, *args: Any, **options: Any) -> Any:  # noqa: N805
                try:
                    result = super().execute(query, *args, **options)
                except psycopg.errors.DeadlockDetected as error:
                    self.deadlocks.append(error)
                    raise
                if COUNTED.search(query if isinstance(query, str) else query.as_string(cursor)):
                    self.stop.count()
                return result

            @contextmanager
            def copy(cursor, *args: Any, **options: Any) -> Iterator[Any]:  # noqa: N805
                with super().copy(*args, **options) as copy:
                    yield copy
                self.stop.count()

        connection = super()._connect()
        connection.cursor_factory = Counting
        return connection


@dataclass
class Meeting:
    """Two processes, and a session that sees whether one of them waits."""

    line: Line
    one: Stoppable
    other: Stoppable
    pool: ThreadPoolExecutor
    watch: psycopg.Connection[Any]

    def meet(self, first: Change, second: Change, n: int) -> bool:
        """Whether the first was stopped, and so met the second, before its end."""
        before_each(self.line, n, (first, second))
        self.one.stop, self.other.stop = Stop(n), Stop()
        deadline = time.monotonic() + WAIT
        doing = self.pool.submit(first, self.line, self.one, n)
        try:
            while not (self.one.stop.reached.wait(0.002) or doing.done()):
                assert time.monotonic() < deadline
            beside = self.pool.submit(second, self.line, self.other, n)
            while not (beside.done() or self.somebody_waits()):
                assert time.monotonic() < deadline
                time.sleep(0.002)
        finally:
            self.one.stop.go.set()
        succeeds(first, doing)
        succeeds(second, beside)
        # Not even one that doing the transaction again has made good.
        assert self.one.deadlocks == self.other.deadlocks == []
        return self.one.stop.reached.is_set()

    def somebody_waits(self) -> bool:
        row = self.watch.execute(
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() "
            # Who deletes a detector looks again and again for who holds its bank.
            "AND (wait_event_type = 'Lock' OR pid <> pg_backend_pid() "
            "AND query LIKE 'SELECT DISTINCT l.virtualtransaction%'))"
        ).fetchone()
        return row == (True,)


@pytest.fixture
def meeting(line: Line) -> Iterator[Meeting]:
    one, other = Stoppable(line.database.url), Stoppable(line.database.url)
    with (
        ThreadPoolExecutor(2) as pool,
        psycopg.connect(line.database.url, autocommit=True) as watch,
    ):
        yield Meeting(line, one, other, pool, watch)
    one.dispose()
    other.dispose()


def succeeds(change: Change, result: Future[None]) -> None:
    error = result.exception(WAIT)
    if error is not None and not isinstance(error, MAY_FAIL.get(change, ())):
        raise error


@pytest.mark.parametrize(
    ("first", "second"), PAIRS, ids=[f"{a.__name__}-{b.__name__}" for a, b in PAIRS]
)
def test_no_two_wait_for_each_other(meeting: Meeting, first: Change, second: Change) -> None:
    for one, other in dict.fromkeys([(first, second), (second, first)]):
        n = 1
        while meeting.meet(one, other, n):
            n += 1
            assert n < 100
        assert n > 1, "nothing of it was stopped"
