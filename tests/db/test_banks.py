"""A bank is all there or not there; detectors come, go and take turns."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import psycopg
import pytest
from guarded import as_login, roles_of
from rows import (
    add_extractor,
    add_images,
    bank_tables,
    count,
    memory_bank,
    store,
    unit_vectors,
)
from sqlalchemy import text

from pgdefect.core.config import Settings
from pgdefect.core.distance import COSINE, L2, as_stored, nearest_vectors
from pgdefect.core.errors import (
    Busy,
    Conflict,
    DatabaseFull,
    DatabaseUnavailable,
    NoActiveDetector,
    NotFound,
    UnknownCategory,
    UnknownDetector,
    UsageError,
)
from pgdefect.core.types import BankInfo, MemoryBank
from pgdefect.db.connection.engine import Database, driver
from pgdefect.db.records import catalog, lifecycle, patchcore
from pgdefect.db.records.detectors import active_detector
from pgdefect.db.records.extractors import load_extractor
from pgdefect.db.records.lifecycle import (
    activate_detector,
    delete_detector,
    delete_image,
    retire_detector,
)
from pgdefect.db.records.patchcore import store_detector
from pgdefect.db.records.summaries import list_detectors
from pgdefect.db.schema.bank_tables import partition_name
from pgdefect.db.schema.hnsw import build_index
from pgdefect.db.search.queries import score_patches, stored_images
from pgdefect.usecases.common.patch_search import SqlSearch
from pgdefect.usecases.train.options import TrainOptions
from pgdefect.usecases.train.train import train
from pgdefect.vision.images.image import load_image
from pgdefect.vision.networks.extractor import Extractor
from pgdefect.vision.patchcore.transform import apply_transform

DIM = 8


class Shop:
    """A category `parts` with ten images, an extractor, and a first detector."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.images = add_images(database, "parts", 10)
        self.extractor_id = add_extractor(database, DIM)
        self.first = store(database, "parts", self.extractor_id, self.bank(1))

    def bank(self, seed: int, vectors: int = 60) -> MemoryBank:
        return memory_bank(unit_vectors(seed, vectors, DIM), self.images)

    def store(self, seed: int = 2, **options: Any) -> int:
        return store(self.database, "parts", self.extractor_id, self.bank(seed), **options)

    def assert_untouched(self) -> None:
        assert bank_tables(self.database) == [partition_name(self.first)]
        assert [d.id for d in list_detectors(self.database)] == [self.first]
        assert count(self.database, "pgdefect.memory_bank") == 1
        assert count(self.database, "pgdefect.memory_bank_patch") == 60
        assert active_detector(self.database, "parts").id == self.first
        assert self.answers(self.first)

    def answers(self, detector_id: int) -> bool:
        bank = active_detector(self.database, "parts").bank
        with self.database.connect() as connection:
            positions, _ = score_patches(connection, bank, unit_vectors(3, 5, DIM))
        return bank.id == detector_id and len(positions) == 5


@pytest.fixture
def shop(database: Database) -> Shop:
    return Shop(database)


@pytest.mark.parametrize("step", ["copy_rows", "_index", "_calibrate", "_insert_bank"])
@pytest.mark.parametrize(
    ("error", "after"), [(RuntimeError, False), (KeyboardInterrupt, True)], ids=["before", "after"]
)
def test_failure_at_any_step_leaves_nothing(
    shop: Shop,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    error: type[BaseException],
    after: bool,
) -> None:
    done = getattr(patchcore, step)

    def fail(*args: Any, **options: Any) -> None:
        if after:
            done(*args, **options)
        raise error("injected")

    with monkeypatch.context() as patch:
        patch.setattr(patchcore, step, fail)
        with pytest.raises(error, match="injected"):
            shop.store()
    shop.assert_untouched()
    second = shop.store()
    assert bank_tables(shop.database) == [partition_name(shop.first), partition_name(second)]
    assert shop.answers(second)


def test_full_disk_on_the_server_leaves_nothing_and_says_what_to_do(shop: Shop) -> None:
    with shop.database.autocommit() as connection:
        connection.execute("""
            CREATE FUNCTION no_space() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
                RAISE 'could not extend file "base/1/2": No space left on device'
                    USING ERRCODE = '53100';
            END $$;
            CREATE EVENT TRIGGER no_space ON ddl_command_start WHEN TAG IN ('CREATE INDEX')
                EXECUTE FUNCTION no_space()""")
    with pytest.raises(DatabaseFull, match=r"no space left.*free some space and run") as caught:
        shop.store()
    assert caught.value.__cause__ is not None
    with shop.database.autocommit() as connection:
        connection.execute("DROP EVENT TRIGGER no_space")
    shop.assert_untouched()


@pytest.mark.parametrize("stage", ["load", "index"])
def test_connection_lost_while_storing_leaves_nothing(shop: Shop, stage: str) -> None:
    def progress(at: str, done: int, total: int) -> None:
        if at != stage:
            return
        with psycopg.connect(shop.database.url, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND state LIKE %s "
                "AND pid <> pg_backend_pid()",
                ["%" if stage == "load" else "idle in transaction"],
            )

    with pytest.raises(DatabaseUnavailable, match=r"lost the connection.*Nothing half-done"):
        shop.store(progress=progress)
    shop.assert_untouched()


def test_readers_see_whole_banks_only(shop: Shop) -> None:
    """A reader that never stops looking, while three banks are stored and one is deleted."""
    seen: list[tuple[int, int, int]] = []
    problems: list[str] = []
    stop = threading.Event()

    def read() -> None:
        none_before = False
        with psycopg.connect(shop.database.url, autocommit=True) as connection:
            while not stop.is_set():
                rows = connection.execute(
                    "SELECT b.bank_id, b.num_vectors, (SELECT count(*) "
                    "FROM pgdefect.memory_bank_patch p WHERE p.bank_id = b.bank_id) "
                    "FROM defect.banks b WHERE b.active"
                ).fetchall()
                # ATTACH blocks no reader, so that a statement may see the commit an instant
                # before its backend hears of the partition: none of the bank, and only once.
                none = len(rows) == 1 and rows[0][2] == 0
                if len(rows) != 1 or (rows[0][1] != rows[0][2] and (none_before or not none)):
                    problems.append(str(rows))
                none_before = none
                seen.extend(rows)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for seed in (2, 3, 4):
            latest = shop.store(seed)
        delete_detector(shop.database, shop.first)
    finally:
        stop.set()
        reader.join()
    assert problems == []
    assert {row[0] for row in seen} >= {shop.first, latest}


def test_reader_is_not_blocked_by_a_bank_that_is_being_stored(shop: Shop) -> None:
    looked = []

    def progress(stage: str, done: int, total: int) -> None:
        with psycopg.connect(shop.database.url, options="-c lock_timeout=500") as connection:
            looked.append(
                connection.execute(
                    "SELECT (SELECT count(*) FROM pgdefect.memory_bank_patch), "
                    "(SELECT count(*) FROM defect.banks), (SELECT count(*) FROM pgdefect.image)"
                ).fetchone()
            )
            # Nor are those who add and judge images.
            connection.execute("UPDATE pgdefect.image SET retired_at = now() WHERE id = 1")
            connection.rollback()

    shop.store(progress=progress)
    assert len(looked) >= 3
    assert set(looked) == {(60, 1, 10)}


# -- taking turns --------------------------------------------------------------------------


def test_exactly_one_detector_of_a_category_is_active(shop: Shop) -> None:
    add_images(shop.database, "others", 10)
    other = store(shop.database, "others", shop.extractor_id, shop.bank(7))
    second, third = shop.store(2), shop.store(3)

    def active() -> list[int]:
        return sorted(d.id for d in list_detectors(shop.database) if d.active)

    assert [d.version for d in list_detectors(shop.database, "parts")] == [3, 2, 1]
    assert active() == [other, third]
    assert activate_detector(shop.database, shop.first) == "parts"
    assert active() == [shop.first, other]
    assert shop.answers(shop.first)
    assert activate_detector(shop.database, shop.first) == "parts"
    assert active() == [shop.first, other]
    assert retire_detector(shop.database, shop.first) == "parts"
    assert active() == [other]
    with pytest.raises(NoActiveDetector, match=r"project\.train\('parts'\)"):
        active_detector(shop.database, "parts")
    activate_detector(shop.database, second)
    assert active() == [second, other] if second < other else [other, second]
    with shop.database.connect() as connection, pytest.raises(psycopg.errors.UniqueViolation):
        driver(connection).execute("UPDATE pgdefect.detector SET active = true, state = 'ready'")


def test_two_activations_at_once_leave_one_active(shop: Shop) -> None:
    others = [shop.store(seed) for seed in (2, 3)]
    for _ in range(5):
        threads = [
            threading.Thread(target=activate_detector, args=(shop.database, id_))
            for id_ in [shop.first, *others]
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(d.active for d in list_detectors(shop.database)) == 1


@pytest.mark.parametrize("action", [activate_detector, retire_detector, delete_detector])
def test_unknown_detectors_are_refused_naming_the_known(
    shop: Shop, action: Callable[[Database, int], object]
) -> None:
    with pytest.raises(UnknownDetector, match=rf"no detector 99; known: {shop.first}$"):
        action(shop.database, 99)


def test_unknown_category_is_refused_naming_the_known(shop: Shop) -> None:
    with pytest.raises(UnknownCategory, match=r"'bolts'; known: parts\..*ingest"):
        active_detector(shop.database, "bolts")
    with pytest.raises(UnknownCategory, match="'bolts'"):
        list_detectors(shop.database, "bolts")


# -- deleting ------------------------------------------------------------------------------


def test_deleting_a_detector_takes_its_bank_and_nothing_else(shop: Shop) -> None:
    second = shop.store()
    delete_detector(shop.database, shop.first)
    assert bank_tables(shop.database) == [partition_name(second)]
    assert count(shop.database, "pgdefect.memory_bank") == 1
    assert count(shop.database, "pgdefect.image") == 10
    assert shop.answers(second)
    delete_detector(shop.database, second)
    assert bank_tables(shop.database) == []
    with pytest.raises(NoActiveDetector):
        active_detector(shop.database, "parts")


def detach_by_hand(shop: Shop) -> None:
    with shop.database.autocommit() as connection:
        connection.execute(
            "ALTER TABLE pgdefect.memory_bank_patch DETACH PARTITION "
            f"pgdefect.{partition_name(shop.first)} CONCURRENTLY"
        )


def leave_detach_pending(shop: Shop) -> None:
    """DETACH CONCURRENTLY has committed its first half and waits for a reader when cancelled."""
    with psycopg.connect(shop.database.url) as reader, shop.database.autocommit() as connection:
        reader.execute("SELECT count(*) FROM pgdefect.memory_bank_patch")
        connection.execute("SET statement_timeout = '300ms'")
        with pytest.raises(psycopg.errors.QueryCanceled):
            connection.execute(
                "ALTER TABLE pgdefect.memory_bank_patch DETACH PARTITION "
                f"pgdefect.{partition_name(shop.first)} CONCURRENTLY"
            )
        pending = connection.execute(
            "SELECT count(*) FROM pg_inherits WHERE inhdetachpending"
        ).fetchone()
        assert pending == (1,)


def drop_by_hand(shop: Shop) -> None:
    detach_by_hand(shop)
    with shop.database.autocommit() as connection:
        connection.execute(f"DROP TABLE pgdefect.{partition_name(shop.first)}")


INTERRUPTIONS = [detach_by_hand, leave_detach_pending, drop_by_hand]
after_each_interruption = pytest.mark.parametrize(
    "interrupt", INTERRUPTIONS, ids=lambda f: f.__name__
)


@after_each_interruption
def test_interrupted_deletion_is_finished_by_a_second_run(
    shop: Shop, interrupt: Callable[[Shop], None]
) -> None:
    retire_detector(shop.database, shop.first)
    interrupt(shop)
    delete_detector(shop.database, shop.first)
    assert bank_tables(shop.database) == []
    assert list_detectors(shop.database) == []
    assert shop.answers(shop.store())


@after_each_interruption
def test_interrupted_deletion_hinders_no_other_bank(
    shop: Shop, interrupt: Callable[[Shop], None]
) -> None:
    second = shop.store()
    interrupt(shop)
    assert shop.answers(second)
    third = shop.store(3)
    delete_detector(shop.database, second)
    assert shop.answers(third)
    delete_detector(shop.database, shop.first)
    assert bank_tables(shop.database) == [partition_name(third)]


def test_deletion_that_fails_midway_hides_the_detector_and_can_be_finished(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(lifecycle, "partition_name", interrupted)
        with pytest.raises(KeyboardInterrupt):
            delete_detector(shop.database, shop.first)
    with pytest.raises(NoActiveDetector):
        active_detector(shop.database, "parts")
    delete_detector(shop.database, shop.first)
    assert bank_tables(shop.database) == []


def interrupted(*args: object) -> str:
    raise KeyboardInterrupt


# -- locks and provenance ------------------------------------------------------------------


def test_second_training_of_a_category_is_told_who_is_at_it_since_when(shop: Shop) -> None:
    with (
        shop.database.lock("training of parts"),
        shop.database.lock("training of bolts"),
        psycopg.connect(shop.database.url) as connection,
    ):
        row = connection.execute(
            "SELECT pid, date_trunc('second', backend_start), clock_timestamp(), usename "
            "FROM pg_stat_activity "
            "WHERE application_name = 'training of parts' AND datname = current_database()"
        ).fetchone()
        assert row is not None
        with pytest.raises(Busy, match="training of parts is running since") as caught:
            train(shop.database, Settings(), "parts", TrainOptions())
        assert f"(login {row[3]}, server process {row[0]})" in str(caught.value)
        assert row[1] <= since(caught.value) <= row[2]


def since(error: Busy) -> datetime:
    found = re.search(r"running since (\S+ \S+) \(", str(error))
    assert found is not None, str(error)
    return datetime.fromisoformat(found[1])


def test_the_time_is_that_of_the_training_and_not_of_its_connection(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy before the server hands out connections that are older than the program."""
    old = shop.database._connect()
    old.autocommit = True
    now = "SELECT date_trunc('second', clock_timestamp()) FROM pg_sleep(1.1)"
    before = old.execute(now).fetchone()
    with monkeypatch.context() as patch:
        patch.setattr(shop.database, "_connect", lambda: old)
        training = shop.database.lock("training of parts")
        training.__enter__()
    try:
        after = old.execute("SELECT clock_timestamp()").fetchone()
        with pytest.raises(Busy) as caught, shop.database.lock("training of parts"):
            pass
    finally:
        training.__exit__(None, None, None)
    assert before is not None
    assert after is not None
    assert before[0] <= since(caught.value) <= after[0]


def test_every_login_is_told_since_when(shop: Shop) -> None:
    """Of another's session a login sees neither when it began nor what it does."""
    with roles_of(shop.database, ann="writer", bob="writer"):
        ann, bob = as_login(shop.database, "ann"), as_login(shop.database, "bob")
        with (
            ann.lock("simulation of parts"),
            pytest.raises(Busy, match=r"login ann, server process \d+\)") as caught,
            bob.lock("simulation of parts"),
        ):
            pass
        assert abs(datetime.now(UTC) - since(caught.value)) < timedelta(minutes=5)


def test_lock_can_be_taken_the_moment_it_is_let_go(shop: Shop) -> None:
    for _ in range(30):
        with shop.database.lock("training of parts"):
            pass
    with pytest.raises(KeyboardInterrupt), shop.database.lock("training of parts"):
        raise KeyboardInterrupt
    with shop.database.lock("training of parts"):
        pass


def test_lock_of_one_database_is_none_of_another(
    shop: Shop, new_database: Callable[..., Database]
) -> None:
    other = new_database()
    with shop.database.lock("training of parts"), other.lock("training of parts"):
        pass
    other.dispose()


def test_image_deleted_during_training_is_a_conflict(shop: Shop) -> None:
    bank = shop.bank(2)
    spare = add_images(shop.database, "spare", 3)
    strange = memory_bank(bank.embeddings, [*shop.images, *spare])
    delete_image(shop.database, spare[1])
    with pytest.raises(Conflict, match=r"1 of the training images were deleted.*train again"):
        store(shop.database, "parts", shop.extractor_id, strange)
    shop.assert_untouched()


def test_image_cannot_be_deleted_while_a_bank_with_it_is_being_stored(shop: Shop) -> None:
    spare = add_images(shop.database, "parts", 12)[10:]
    outcome: list[BaseException] = []

    def delete() -> None:
        try:
            delete_image(shop.database, spare[0])
        except Conflict as error:
            outcome.append(error)

    thread = threading.Thread(target=delete)

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "index" and not done:
            thread.start()
            thread.join(0.3)

    bank = memory_bank(unit_vectors(2, 60, DIM), [*shop.images, *spare])
    stored = store(shop.database, "parts", shop.extractor_id, bank, progress)
    thread.join()
    assert len(outcome) == 1
    assert f"part of memory bank {stored}" in str(outcome[0])
    assert count(shop.database, "pgdefect.image", f"id = {spare[0]}") == 1


def test_patches_of_a_deleted_bank_are_not_found(shop: Shop) -> None:
    bank = active_detector(shop.database, "parts").bank
    delete_detector(shop.database, shop.first)
    with pytest.raises(NotFound, match="memory bank"), shop.database.connect() as connection:
        score_patches(connection, bank, unit_vectors(3, 5, DIM))


@pytest.mark.parametrize(("precision", "dim"), [("half", 4001), ("single", 2001)])
def test_vectors_too_long_for_an_index_are_refused(shop: Shop, precision: Any, dim: int) -> None:
    bank = memory_bank(unit_vectors(0, 5, dim), shop.images, precision=precision)
    with pytest.raises(UsageError, match=rf"have {dim}; .* with pca_dim"):
        store(shop.database, "parts", shop.extractor_id, bank)
    shop.assert_untouched()


@pytest.mark.parametrize(("precision", "dim"), [("half", 4000), ("single", 2000)])
def test_longest_vectors_are_indexed(shop: Shop, precision: Any, dim: int) -> None:
    vectors = unit_vectors(0, 12, dim)
    stored = store(
        shop.database,
        "parts",
        shop.extractor_id,
        memory_bank(vectors, shop.images, precision=precision),
    )
    bank = active_detector(shop.database, "parts").bank
    assert bank.id == stored
    with shop.database.connect() as connection:
        positions, _ = score_patches(connection, bank, vectors)
        nearest = connection.scalar(
            text("SELECT nearest_position FROM pgdefect.nearest_bank_vectors(:b, :v, 1)"),
            {"b": stored, "v": str(vectors[7].tolist())},
        )
    assert positions.tolist() == list(range(12))
    assert nearest == 7


def test_calibration_takes_the_least_ef_search_that_reaches_the_target(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the same table: what is stored reaches its recall, the choice before does not."""
    bank = memory_bank(unit_vectors(2, 3000, 24), shop.images)
    monkeypatch.setattr(patchcore, "EF_SEARCH_CHOICES", (1, 2, 4, *patchcore.EF_SEARCH_CHOICES))
    queries = as_stored(unit_vectors(4, 300, 24), "half")
    nearest = patchcore.Calibration(
        queries, patchcore.np.asarray(_exact(queries, bank), dtype=np.float32)
    )
    info = stored_with(shop, bank, nearest)
    with shop.database.connect() as connection:
        stored = connection.scalar(
            text("SELECT ef_search_recall FROM pgdefect.memory_bank WHERE id = :id"),
            {"id": info.id},
        )
        driver(connection).execute("SET LOCAL enable_seqscan = off")

        def recall(ef: int) -> float:
            _, distances = score_patches(connection, info, queries, ef=ef)
            return float((distances <= nearest.distances * (1 + 1e-4) + 1e-6).mean())

        assert recall(info.ef_search) == pytest.approx(stored, abs=0.01)
        assert info.ef_search > patchcore.EF_SEARCH_CHOICES[0]
        slightly_less = range(info.ef_search - max(1, info.ef_search // 20), info.ef_search)
        assert min(map(recall, slightly_less)) < patchcore.RECALL_TARGET
        assert stored >= patchcore.RECALL_TARGET


def test_calibration_on_images_is_of_the_way_they_are_searched(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every other patch is asked for: what is stored reaches the target so, and less does not."""
    bank = memory_bank(unit_vectors(2, 3000, 24), shop.images)
    monkeypatch.setattr(patchcore, "EF_SEARCH_CHOICES", (1, 2, 4, *patchcore.EF_SEARCH_CHOICES))
    monkeypatch.setattr(patchcore, "LEAST_EF_SEARCH_FAST", 1)
    grids = [(12, 10), (6, 17)]
    patches = []
    for seed, (rows, cols) in enumerate(grids):
        # Four by four patches resemble one another.
        coarse = unit_vectors(seed, 30, 24).reshape(3, 10, 24).repeat(4, 0).repeat(4, 1)
        fine = 0.5 * unit_vectors(seed + 10, rows * cols, 24).reshape(rows, cols, 24)
        patches.append(as_stored((coarse[:rows, :cols] + fine).reshape(-1, 24), "half"))
    queries = np.concatenate(patches)
    exact = np.asarray(_exact(queries, bank), dtype=np.float32)
    info = stored_with(shop, bank, patchcore.Calibration(queries, exact, grids))

    def recall(ef: int) -> float:
        found = [
            SqlSearch(shop.database, info, ef).nearest(image, grid)[1]
            for image, grid in zip(patches, grids, strict=True)
        ]
        return float((np.concatenate(found) <= exact * (1 + 1e-4) + 1e-6).mean())

    assert 1 < info.ef_search_fast <= info.ef_search
    assert recall(info.ef_search_fast) >= patchcore.FAST_RECALL_TARGET
    assert recall(info.ef_search) >= patchcore.RECALL_TARGET
    assert recall(info.ef_search_fast // 2) < patchcore.FAST_RECALL_TARGET


def test_calibration_is_against_the_index_without_what_is_left_out_for_it(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queries are vectors of the bank: were they in the index, each would find itself."""
    monkeypatch.setattr(patchcore, "EF_SEARCH_CHOICES", (1, 2, 4, *patchcore.EF_SEARCH_CHOICES))
    monkeypatch.setattr(patchcore, "LEAST_EF_SEARCH", 1)
    bank = memory_bank(unit_vectors(2, 3200, 24), shop.images)
    left_out = np.arange(len(bank.embeddings)) % 16 == 3
    queries = bank.embeddings[left_out]
    _, exact = nearest_vectors(queries, bank.embeddings[~left_out], bank.metric)
    with_them = stored_with(shop, bank, patchcore.Calibration(queries, np.zeros_like(exact)))
    info = stored_with(shop, bank, patchcore.Calibration(queries, exact, left_out=left_out))
    assert info.ef_search > 2 * with_them.ef_search

    # Afterwards all of them are there, each at its place, and found by the index.
    with shop.database.connect() as connection:
        rows = connection.execute(
            text(
                "SELECT position, image_id, embedding::vector::real[] AS v "
                "FROM pgdefect.memory_bank_patch WHERE bank_id = :id ORDER BY position"
            ),
            {"id": info.id},
        ).all()
        driver(connection).execute("SET LOCAL enable_seqscan = off")
        found, distances = score_patches(connection, info, queries, ef=200)
    assert [row.position for row in rows] == list(range(3200))
    assert [row.image_id for row in rows] == bank.image_ids.tolist()
    stored = np.array([row.v for row in rows], dtype=np.float32)
    np.testing.assert_array_equal(stored, bank.embeddings)
    assert (found == np.flatnonzero(left_out)).mean() > 0.99
    assert np.median(distances) < 1e-6


def stored_with(shop: Shop, bank: MemoryBank, calibration: patchcore.Calibration) -> BankInfo:
    with shop.database.connect() as connection:
        category = catalog.category_id(connection, "parts")
    detector = store_detector(
        shop.database,
        category_id=category,
        extractor_id=shop.extractor_id,
        bank=bank,
        threshold=patchcore.Threshold(0.5, 0.1, {}),
        calibration=calibration,
        settings={},
        metrics={},
        library_versions={},
    )
    info = active_detector(shop.database, "parts").bank
    assert info.id == detector
    return info


def _exact(queries: Any, bank: MemoryBank) -> Any:
    from pgdefect.core.distance import nearest_vectors

    return nearest_vectors(queries, bank.embeddings, bank.metric)[1]


def test_bank_comes_back_as_it_was_stored(shop: Shop) -> None:
    bank = memory_bank(
        3 * unit_vectors(2, 40, DIM), shop.images, metric=L2, precision="single", num_neighbors=3
    )
    store(shop.database, "parts", shop.extractor_id, bank)
    info = active_detector(shop.database, "parts").bank
    assert (info.num_vectors, info.embedding_dim, info.num_neighbors) == (40, DIM, 3)
    assert (info.metric, info.precision, info.transform.kind) == (L2, "single", "none")


def test_stored_vectors_come_from_the_image_and_cell_they_name(
    trained: Database, settings: Settings
) -> None:
    detector = active_detector(trained, "parts")
    extractor = Extractor(load_extractor(trained, detector.extractor_id, settings.cache_dir))
    with trained.connect() as connection:
        rows = connection.execute(
            text(
                'SELECT position, image_id, "row", col, embedding::real[] '
                "FROM pgdefect.memory_bank_patch WHERE bank_id = :id ORDER BY position"
            ),
            {"id": detector.bank.id},
        ).all()
        ids = sorted({row.image_id for row in rows})
        images = stored_images(connection, ids)
    assert [row.position for row in rows] == list(range(detector.bank.num_vectors))
    assert len(ids) > 3
    assert {(images[i].split, images[i].known_label) for i in ids} == {("train", "normal")}
    for image_id in ids:
        pixels = extractor.preprocessing.apply(load_image(images[image_id].path))
        patches = extractor(pixels[None])[0]
        vectors = as_stored(
            apply_transform(detector.bank.transform, patches.reshape(-1, patches.shape[-1])),
            detector.bank.precision,
        ).reshape(*patches.shape[:2], -1)
        mine = [row for row in rows if row.image_id == image_id]
        stored = np.array([row.embedding for row in mine], dtype=np.float32)
        recomputed = np.array([vectors[row.row, row.col] for row in mine])
        np.testing.assert_allclose(stored, recomputed, atol=2e-3)
        # The right cell, and not just a similar one.
        nearest = COSINE  # as the bank's
        assert detector.bank.metric is nearest
        flat = vectors.reshape(-1, vectors.shape[-1])
        best = (stored @ flat.T).argmax(axis=1)
        cells = np.array([row.row * patches.shape[1] + row.col for row in mine])
        assert (best == cells).mean() > 0.9


def test_a_server_lost_while_an_index_is_built_is_said(database: Database) -> None:
    with database.begin() as connection:
        connection.execute(text("CREATE TABLE public.some (embedding vector(2))"))
    ends = "SELECT pg_terminate_backend(pg_backend_pid())"
    with pytest.raises(DatabaseUnavailable), database.begin() as connection:
        build_index(connection, "public.some", ends, 1)
