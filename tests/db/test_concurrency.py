"""Many at once: whole commands, each in its own process or on connections of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
import psycopg
import pytest
from digests import columns, digests
from guarded import Clone, as_login, roles_of
from sqlalchemy import Connection, text
from test_dumps import SAYS_VERSION, VERSIONS, unpacked

from pgdefect.core.config import Settings
from pgdefect.core.errors import Busy, UsageError
from pgdefect.core.types import Inspection
from pgdefect.db.backup.client_programs import find_program
from pgdefect.db.connection.engine import Database
from pgdefect.db.records.detectors import active_detector
from pgdefect.db.records.lifecycle import activate_detector, retire_detector
from pgdefect.db.records.summaries import list_detectors
from pgdefect.db.schema.schema import check, newest_revision, upgrade
from pgdefect.usecases.ingest import ingest
from pgdefect.usecases.inspect.inspect import InspectReport, inspect
from pgdefect.usecases.inspect.inspector import Inspector
from pgdefect.usecases.threshold import change_threshold
from pgdefect.usecases.train.options import TrainOptions
from pgdefect.usecases.train.train import train

WAIT = 120.0
TINY = (128, 128)
PROGRAM = [sys.executable, "-c", "from pgdefect.cli.main import main; main()"]


@contextmanager
def processes(database: Database, count: int) -> Iterator[list[Database]]:
    """The database as so many processes have it: connections of their own."""
    opened = [Database(database.url) for _ in range(count)]
    yield opened
    for one in opened:
        one.dispose()


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def number(database: Database, query: str) -> int:
    with psycopg.connect(database.url) as connection:
        row = connection.execute(query).fetchone()  # type: ignore[call-overload]
    assert row is not None
    return int(row[0])


def deadlocks(database: Database) -> int:
    """How many the server has resolved; sessions report them when they end."""
    database.dispose()
    wait_until(
        lambda: (
            number(
                database,
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
                "AND backend_type = 'client backend' AND pid <> pg_backend_pid()",
            )
            == 0
        )
    )
    return number(
        database, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    )


def test_a_deadlock_is_counted(database: Database) -> None:
    """So that none counted means that there was none."""
    assert deadlocks(database) == 0
    both = threading.Barrier(2)

    def lock(first: int, second: int) -> bool:
        with psycopg.connect(database.url) as connection:
            connection.execute("SELECT pg_advisory_xact_lock(%s)", [first])
            both.wait(WAIT)
            try:
                connection.execute("SELECT pg_advisory_xact_lock(%s)", [second])
            except psycopg.errors.DeadlockDetected:
                return False
        return True

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(lock, (1, 2), (2, 1))) == [False, True]
    assert deadlocks(database) == 1


# -- ingesting -----------------------------------------------------------------------------


def overlapping(parts: Path, folder: Path) -> list[list[str]]:
    """Ten command lines that name parts of one folder, some by a manifest, in several orders."""
    root = folder / "data" / "parts"
    shutil.copytree(parts, root)
    images = sorted(str(p.relative_to(root)) for p in root.glob("t*/*/*.png"))
    assert len(images) == 29
    commands = [["ingest", str(root), "--category", "parts"]] * 3
    commands += [["ingest", str(folder / "data"), "--all"]] * 3
    for n, (first, last) in enumerate([(0, 20), (10, 29), (5, 25), (0, 29)]):
        some = images[first:last][:: -1 if n % 2 else 1]
        manifest = root / f"some{n}.csv"
        rows = "".join(f"{path},{path.split('/')[1].replace('good', '')}\n" for path in some)
        manifest.write_text(f"path,defect_type\n{rows}")
        commands.append(["ingest", str(manifest), "--category", "parts"])
    return commands


def test_ten_ingests_of_overlapping_folders(
    database: Database, parts: Path, tmp_path: Path
) -> None:
    commands = overlapping(parts, tmp_path)
    with ExitStack() as stack:
        # All begin to look and to store in the same moment, when this lock is let go.
        held = stack.enter_context(psycopg.connect(database.url))
        held.execute("LOCK TABLE pgdefect.image IN ACCESS EXCLUSIVE MODE")
        running = [
            stack.enter_context(
                subprocess.Popen(
                    [*PROGRAM, "--database-url", database.url, *command, "--json"],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            for command in commands
        ]
        stack.callback(lambda: [process.kill() for process in running])
        wait_until(
            lambda: (
                number(
                    database,
                    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
                    "AND wait_event_type = 'Lock'",
                )
                == 10
            )
        )
        held.commit()
        results = [(*process.communicate(timeout=WAIT), process.returncode) for process in running]
    for _, said, code in results:
        assert (code, "Traceback" in said) == (0, False), said
    reports = [one for out, _, _ in results for one in documents(out)]
    assert len(reports) == 10
    assert sum(report["added"] for report in reports) == 29
    for report in reports:
        assert not report["failed"]
        assert not report["changed"]
    assert number(database, "SELECT count(*) FROM pgdefect.image") == 29
    assert number(database, "SELECT count(DISTINCT sha256) FROM pgdefect.image") == 29
    assert number(database, "SELECT count(*) FROM pgdefect.category") == 1
    assert number(database, "SELECT count(*) FROM pgdefect.image_root") == 1
    assert deadlocks(database) == 0


def documents(out: str) -> list[dict[str, object]]:
    import json

    found = json.loads(out)
    return found if isinstance(found, list) else [found]


# -- training ------------------------------------------------------------------------------


def test_two_trainings_of_one_category_at_once(trained: Database, settings: Settings) -> None:
    """The second is told so at once; the first is not disturbed."""
    under_way, go_on = threading.Event(), threading.Event()

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "extract":
            under_way.set()
            assert go_on.wait(WAIT)

    options = TrainOptions(image_size=TINY, coreset_ratio=0.05)
    with processes(trained, 2) as (one, other), ThreadPoolExecutor(1) as pool:
        first = pool.submit(train, one, settings, "parts", options, progress=progress)
        try:
            wait_until(lambda: under_way.is_set() or first.done())
            with pytest.raises(Busy, match=r"^training of parts is running since 20\d\d-"):
                train(other, settings, "parts", options)
        finally:
            go_on.set()
        made = first.result(WAIT).detector_id
    assert [(d.id, d.version, d.active) for d in list_detectors(trained)] == [
        (made, 2, True),
        (1, 1, False),
    ]
    assert deadlocks(trained) == 0


def test_nobody_waits_for_a_bank_that_is_being_stored(
    trained: Database, settings: Settings, parts: Path, tmp_path: Path
) -> None:
    """While its index is built a line inspects, new images come, and banks are switched."""
    line, more = tmp_path / "line", tmp_path / "more"
    for folder in (line, more):
        folder.mkdir()
        for path in (parts / "test" / "scratch").glob("*.png"):
            (folder / path.name).write_bytes(path.read_bytes() + folder.name.encode())
    done: list[str] = []

    def work() -> None:
        # The training goes on when this is over: whoever has to wait for it fails instead.
        impatient = Database(trained.url + "&options=-c%20lock_timeout%3D5s")
        found = inspect(impatient, settings, "parts", [line])
        assert [inspection.detector_id for inspection in found.inspections] == [1, 1, 1]
        assert ingest(impatient, more, "parts", split="test").added == 3
        retire_detector(impatient, 1)
        assert activate_detector(impatient, 1) == "parts"
        change_threshold(impatient, "parts", "given", 0.4)
        impatient.dispose()
        done.append("all")

    def progress(stage: str, finished: int, total: int) -> None:
        if stage == "index" and not finished:
            work()

    options = TrainOptions(image_size=TINY)
    made = train(trained, settings, "parts", options, progress=progress).detector_id
    assert done == ["all"]
    assert active_detector(trained, "parts").id == made


# -- inspecting ----------------------------------------------------------------------------


@pytest.fixture
def two_banks(trained: Database, settings: Settings) -> tuple[Database, dict[int, InspectReport]]:
    """A second bank, and what each of both says of the test images when it is alone."""
    options = TrainOptions(image_size=TINY, coreset_ratio=0.02, pca_dim=8)
    second = train(trained, settings, "parts", options).detector_id
    alone = {}
    for detector_id in (1, second):
        activate_detector(trained, detector_id)
        alone[detector_id] = inspect(trained, settings, "parts", split="test", store=False)
    return trained, alone


def assert_of_one_bank(report: InspectReport, alone: dict[int, InspectReport]) -> int:
    """Every inspection names the same bank, and says what that one says."""
    [detector_id] = {inspection.detector_id for inspection in report.inspections}
    expected = alone[detector_id].inspections
    assert len(report.inspections) == len(expected) == 13
    for found, wanted in zip(report.inspections, expected, strict=True):
        assert (found.path, found.threshold) == (wanted.path, wanted.threshold)
        assert found.raw_score == pytest.approx(wanted.raw_score, rel=1e-5)
        np.testing.assert_allclose(found.scores.distances, wanted.scores.distances, rtol=1e-4)
    return detector_id


def test_inspections_while_the_active_bank_is_switched_to_and_fro(
    two_banks: tuple[Database, dict[int, InspectReport]], settings: Settings
) -> None:
    database, alone = two_banks
    first, second = alone
    scores = [[i.raw_score for i in alone[bank].inspections] for bank in alone]
    assert np.abs(np.divide(*scores) - 1).min() > 1e-3  # so that they can be told apart
    activate_detector(database, first)
    kept = Inspector(database, settings, "parts")
    used = []
    for turn in range(4):
        switched: list[int] = []

        def switch(
            inspection: Inspection, switched: list[int] = switched, turn: int = turn
        ) -> None:
            if not switched:
                switched.append((second, first)[turn % 2])
                activate_detector(database, switched[0])

        # In the middle of each run.
        report = inspect(database, settings, "parts", split="test", on_judged=switch)
        used.append(assert_of_one_bank(report, alone))
    assert used == [first, second, first, second]
    activate_detector(database, second)
    report = inspect(database, settings, "parts", split="test", inspector=kept)
    assert assert_of_one_bank(report, alone) == first
    with pytest.raises(UsageError, match="the inspector given is of 'parts'"):
        inspect(database, settings, "parts", split="test", inspector=kept, search="fast")
    in_crowd(database, settings, alone)
    with psycopg.connect(database.url) as connection:
        rows = connection.execute(
            "SELECT s.detector_id, r.path || '/' || i.path, s.raw_score, d.threshold = s.threshold "
            "FROM pgdefect.inspection s JOIN pgdefect.image i ON i.id = s.image_id "
            "JOIN pgdefect.image_root r ON r.id = i.root_id "
            "JOIN pgdefect.detector d ON d.id = s.detector_id"
        ).fetchall()
    assert len({(detector, path) for detector, path, *_ in rows}) == 2 * 13
    assert all(own_threshold for *_, own_threshold in rows)
    expected = {
        (detector, inspection.path): inspection.raw_score
        for detector, report in alone.items()
        for inspection in report.inspections
    }
    for detector, path, score, _ in rows:
        assert score == pytest.approx(expected[detector, path], rel=1e-5)
    assert deadlocks(database) == 0


def in_crowd(database: Database, settings: Settings, alone: dict[int, InspectReport]) -> None:
    """Three lines inspect the same images while another session switches all the time."""
    over = threading.Event()

    def switch_on(own: Database) -> int:
        switches = 0
        while not over.is_set():
            for detector_id in alone:
                activate_detector(own, detector_id)
                switches += 1
        return switches

    def run(own: Database) -> None:
        for _ in range(3):
            report = inspect(own, settings, "parts", split="test")
            assert_of_one_bank(report, alone)

    with processes(database, 4) as (switcher, *lines), ThreadPoolExecutor(4) as pool:
        switching = pool.submit(switch_on, switcher)
        try:
            list(pool.map(run, lines))
        finally:
            over.set()
        assert switching.result(WAIT) > 0


# -- upgrading -----------------------------------------------------------------------------


@pytest.fixture(params=[version for version in VERSIONS if version != newest_revision()])
def older(request: pytest.FixtureRequest, clone_of: Clone, tmp_path: Path) -> Iterator[Database]:
    """A database as it was left by an older pgdefect."""
    with clone_of(None) as database:
        with database.begin() as connection:
            connection.execute(text("CREATE EXTENSION vector"))
        program = find_program("pg_restore", least=18, bundled_first=True).path
        dump = unpacked(request.param, tmp_path)
        command = [program, "--exit-on-error", "--no-owner", f"--dbname={database.url}", dump]
        subprocess.run(command, check=True)
        yield database


def test_upgrade_while_others_write(older: Database) -> None:
    """Programs of the older version go on all the time; every row that they were promised is
    there, and so is what was there before.
    """
    kept = columns(older)
    over = threading.Event()
    begun = threading.Barrier(5)

    def write(own: Database, writer: int) -> list[str]:
        """Images and their inspections, in any order, some changed again."""
        names: list[str] = []
        try:
            while not (over.is_set() and len(names) >= 3):
                name = f"{writer}/{len(names)}"
                own.transact(lambda connection, name=name: record(connection, name))
                names.append(name)
                if len(names) == 1:
                    begun.wait(WAIT)
        except BaseException:
            begun.abort()
            raise
        return names

    before = digests(older, kept, SAYS_VERSION)
    with processes(older, 5) as (administrator, *writers), ThreadPoolExecutor(4) as pool:
        writing = [pool.submit(write, own, n) for n, own in enumerate(writers)]
        try:
            with suppress(threading.BrokenBarrierError):
                begun.wait(WAIT)
            report = upgrade(administrator)
        finally:
            over.set()
        names = [name for future in writing for name in future.result(WAIT)]
    assert report.revision == newest_revision()
    assert check(older).differences == ()
    with psycopg.connect(older.url) as connection:
        rows = connection.execute(
            "SELECT i.path, count(s.id) FROM pgdefect.image i "
            "LEFT JOIN pgdefect.inspection s ON s.image_id = i.id "
            "WHERE i.sha256 = repeat('e', 64) GROUP BY 1"
        ).fetchall()
        assert dict(rows) == dict.fromkeys(names, 1)
        connection.execute("DELETE FROM pgdefect.image WHERE sha256 = repeat('e', 64)")
    after = digests(older, kept, SAYS_VERSION)
    trail = ("audit", "audit_head")  # what the writers did is in it
    assert {k: v for k, v in after.items() if k not in trail} == {
        k: v for k, v in before.items() if k not in trail
    }


def record(connection: Connection, name: str) -> None:
    """What every version's schema takes; the inspection is changed after the image was."""
    image = connection.scalar(
        text(
            "INSERT INTO pgdefect.image (category_id, root_id, path, sha256, num_bytes, height, "
            "width, split) SELECT category_id, root_id, :name, repeat('e', 64), 1, 8, 8, "
            "'production' FROM pgdefect.image ORDER BY id LIMIT 1 RETURNING id"
        ),
        {"name": name},
    )
    made = connection.scalar(
        text(
            "INSERT INTO pgdefect.inspection (image_id, detector_id, raw_score, normalized_score, "
            "threshold, worst_row, worst_col, anomaly_map, nearest_positions, search) "
            "SELECT :image, d.id, 1, 1, 0.5, 0, 0, '{{1}}', '{{0}}', 'exact' "
            "FROM pgdefect.detector d WHERE d.active RETURNING id"
        ),
        {"image": image},
    )
    connection.execute(
        text("UPDATE pgdefect.image SET group_name = :name WHERE id = :id"),
        {"name": name, "id": image},
    )
    connection.execute(
        text("UPDATE pgdefect.inspection SET normalized_score = 2 WHERE id = :id"), {"id": made}
    )


def test_functions_and_views_are_renewed_under_a_running_line(
    trained: Database, settings: Settings, parts: Path, tmp_path: Path
) -> None:
    before = inspect(trained, settings, "parts", split="test")
    over = threading.Event()

    def run(own: Database) -> int:
        rounds = 0
        while not over.is_set() or not rounds:
            report = inspect(own, settings, "parts", split="test")
            assert [i.verdict for i in report.inspections] == [
                i.verdict for i in before.inspections
            ]
            rounds += 1
        return rounds

    def add(own: Database) -> int:
        rounds = 0
        while not over.is_set() or not rounds:
            folder = tmp_path / str(rounds)
            shutil.copytree(parts / "test", folder / "test")
            assert ingest(own, folder, "more").added == 13
            rounds += 1
        return rounds

    with processes(trained, 3) as (administrator, one, other), ThreadPoolExecutor(2) as pool:
        working = [pool.submit(run, one), pool.submit(add, other)]
        try:
            for _ in range(5):
                with administrator.begin() as connection:
                    connection.execute(text("UPDATE pgdefect.sql_file SET sha256 = ''"))
                assert len(upgrade(administrator).sql_files) > 30
        finally:
            over.set()
        rounds = [future.result(WAIT) for future in working]
    assert number(trained, "SELECT count(*) FROM pgdefect.image") == 29 + 13 * rounds[1]
    assert check(trained).differences == ()


# -- reading -------------------------------------------------------------------------------

QUESTIONS = [
    "SELECT * FROM defect.similar_images('scratch/000.png', k => 5, category => 'parts')",
    "SELECT * FROM defect.similar_images('test/good/001.png', 5, 'parts', by => 'picture')",
    "SELECT n.* FROM pgdefect.inspection s, defect.nearest_normal(s.id) n ORDER BY s.id, 1, 2",
    "SELECT * FROM defect.images WHERE category = 'parts' ORDER BY image_id",
    "SELECT * FROM defect.inspections ORDER BY inspection_id",
    "SELECT * FROM defect.confusion ORDER BY 1, 2, 3",
    "SELECT * FROM defect.review_queue ORDER BY image_id",
]


def answers(connection: psycopg.Connection[tuple[object, ...]]) -> list[object]:
    return [connection.execute(question).fetchall() for question in QUESTIONS]  # type: ignore[arg-type]


def test_thirty_readers_at_once(trained: Database, settings: Settings) -> None:
    """Each gets the answers that one alone gets, also while a bank is trained beside."""
    all_there = threading.Barrier(31)

    def read(number: int) -> bool:
        with psycopg.connect(as_login(trained, f"reader{number % 3}").url) as connection:
            all_there.wait(WAIT)
            return [answers(connection) for _ in range(3)] == [expected] * 3

    # The detector makes no mistake here; one is needed for the review queue to have a row.
    with trained.begin() as connection:
        connection.execute(
            text("UPDATE pgdefect.image SET label = 'anomalous' WHERE path = 'test/good/001.png'")
        )
    with roles_of(trained, reader0="reader", reader1="reader", reader2="reader"):
        with psycopg.connect(as_login(trained, "reader0").url) as reader:
            expected = answers(reader)
        assert all(expected)
        with ThreadPoolExecutor(30) as pool:
            reading = [pool.submit(read, n) for n in range(30)]
            all_there.wait(WAIT)
            train_beside(trained, settings)
            assert [future.result(WAIT) for future in reading] == [True] * 30
    assert deadlocks(trained) == 0


def train_beside(database: Database, settings: Settings) -> None:
    """A bank of a category of its own comes and goes."""
    with database.begin() as connection:
        connection.execute(text("INSERT INTO pgdefect.category (name) VALUES ('beside')"))
        connection.execute(
            text(
                "INSERT INTO pgdefect.image (category_id, root_id, path, sha256, num_bytes, "
                "height, width, split, label) SELECT c.id, root_id, path, sha256, num_bytes, "
                "height, width, split, label FROM pgdefect.image, pgdefect.category c "
                "WHERE c.name = 'beside' AND split = 'train'"
            )
        )
    train(database, settings, "beside", TrainOptions(image_size=TINY))
