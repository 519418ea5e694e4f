"""Each fault is made for real; doctor finds it, says what mends it, and mends what is safe."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from guarded import as_login, database_name, roles_of
from psycopg import errors as pg
from rows import add_extractor, add_images, bank_tables, count, unit_vectors
from sqlalchemy import text

from pgdefect.cli.spelling import CommandLine
from pgdefect.core.config import Settings
from pgdefect.core.types import ExtractorArtifact, ExtractorSpec
from pgdefect.core.wording import speaking
from pgdefect.db.connection.engine import Database
from pgdefect.db.doctor import indexes, server
from pgdefect.db.doctor.findings import Finding, fix_command
from pgdefect.db.records.detectors import active_detector
from pgdefect.db.records.extractors import find_extractor, load_extractor, store_extractor
from pgdefect.db.records.lifecycle import delete_detector
from pgdefect.db.schema.partitions import SEARCHED, UNSEARCHED
from pgdefect.db.search.queries import score_patches
from pgdefect.usecases.doctor import examine

OF_THE_MACHINE = {"disk", "shared-memory", "memory"}


@pytest.fixture(autouse=True)
def commands_as_typed() -> Iterator[None]:
    """Remedies are looked at as the command line shows them."""
    with speaking(CommandLine()):
        yield


@pytest.fixture
def here(settings: Settings, tmp_path: Path) -> Settings:
    """Settings with folders of the test's own."""
    return settings.model_copy(
        update={"cache_dir": tmp_path / "cache", "data_dir": tmp_path / "data"}
    )


def findings(database: Database, here: Settings, *checks: str, **options: bool) -> list[Finding]:
    """What doctor finds, of some checks only."""
    found = examine(database, here, **options).findings
    return [finding for finding in found if finding.check in checks]


def run(database: Database, *statements: str) -> None:
    with database.autocommit() as connection:
        for statement in statements:
            connection.execute(statement)
        connection.execute("SELECT pg_stat_force_next_flush()")


def mended(
    database: Database, here: Settings, check: str, times: int = 1, besides: str = ""
) -> None:
    """`--fix` mends what the check found, and nothing else is wrong afterwards."""
    report = examine(database, here, fix=True)
    assert [(one.finding.check, one.error) for one in report.fixed] == [(check, None)] * times
    assert [f for f in report.findings if f.check not in OF_THE_MACHINE | {besides}] == []


def counted(database: Database) -> None:
    """End all sessions, and wait for it: one that is idle may report its counts seconds later."""
    others = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
        "AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )
    database.dispose()
    with psycopg.connect(database.url, autocommit=True) as connection:
        for _ in range(600):
            if connection.execute(others).fetchone() == (0,):
                return
            time.sleep(0.1)
    raise AssertionError("a session stayed for a minute")


@contextmanager
def busy(database: Database, table: str) -> Iterator[None]:
    """Somebody else writes to a table, and does not come to an end."""
    with psycopg.connect(database.url) as connection:
        connection.execute(f"LOCK TABLE {table} IN ROW EXCLUSIVE MODE")
        yield


def interrupted(database: Database, statement: str) -> None:
    """A statement that waits for somebody and gives up halfway."""
    with database.autocommit() as connection:
        connection.execute("SET lock_timeout = '50ms'")
        with pytest.raises(pg.LockNotAvailable):
            connection.cursor().execute(statement)


def test_nothing_is_wrong_with_a_trained_database(
    trained: Database, here: Settings, settings: Settings
) -> None:
    for report in (
        examine(trained, here),
        examine(trained, settings, fix=True, thorough=True, files=True),
    ):
        assert [f for f in report.findings if f.check not in OF_THE_MACHINE] == []
        assert report.faults == 0
        assert report.fixed == ()
        assert report.server.startswith("PostgreSQL 18")


# -- indexes -------------------------------------------------------------------------------


def test_index_that_an_interrupted_build_left(trained: Database, here: Settings) -> None:
    with trained.connect() as connection:
        built = connection.scalar(
            text("SELECT pg_get_indexdef('pgdefect.memory_bank_patch_1_hnsw'::regclass)")
        )
    run(trained, "DROP INDEX pgdefect.memory_bank_patch_1_hnsw")
    with busy(trained, "pgdefect.memory_bank_patch_1"):
        interrupted(trained, built.replace("CREATE INDEX", "CREATE INDEX CONCURRENTLY", 1))
    [finding] = findings(trained, here, "invalid-index", "missing-hnsw", "hnsw-definition")
    assert finding.severity == "fault"
    assert finding.subject == "pgdefect.memory_bank_patch_1_hnsw"
    assert "invalid hnsw index of memory_bank_patch_1" in finding.message
    assert finding.remedy == fix_command()
    mended(trained, here, "invalid-index")


def test_leftovers_of_an_interrupted_rebuild(trained: Database, here: Settings) -> None:
    with busy(trained, "pgdefect.image"):
        interrupted(trained, "REINDEX INDEX CONCURRENTLY pgdefect.ix_image_root_id")
    [finding] = findings(trained, here, "invalid-index")
    assert finding.subject == "pgdefect.ix_image_root_id_ccnew"
    mended(trained, here, "invalid-index")
    with trained.connect() as connection:
        assert connection.scalar(text("SELECT to_regclass('pgdefect.ix_image_root_id')"))


def test_repair_that_fails_is_said_and_tried_once(trained: Database, here: Settings) -> None:
    with trained.autocommit() as connection, pytest.raises(pg.UniqueViolation):
        connection.cursor().execute(
            "CREATE UNIQUE INDEX CONCURRENTLY one_split ON pgdefect.image (split)"
        )
    report = examine(trained, here, fix=True)
    [fixed] = [one for one in report.fixed if one.finding.subject == "pgdefect.one_split"]
    assert fixed.error is not None
    assert fixed.error.startswith("REINDEX INDEX CONCURRENTLY pgdefect.one_split: could not")
    assert report.faults >= 1


def test_index_being_built_is_left_alone(trained: Database, here: Settings) -> None:
    import threading

    building = threading.Thread(
        target=run,
        args=(trained, "CREATE INDEX CONCURRENTLY slow ON pgdefect.category (created_at)"),
    )
    with busy(trained, "pgdefect.category"):
        building.start()
        with trained.autocommit() as connection:
            for _ in range(200):
                row = connection.execute(
                    "SELECT count(*) FROM pg_index WHERE indexrelid = to_regclass('pgdefect.slow') "
                    "AND NOT indisvalid"
                ).fetchone()
                if row == (1,):
                    break
                connection.execute("SELECT pg_sleep(0.02)")
            else:
                pytest.fail("the index was not begun")
        assert findings(trained, here, "invalid-index") == []
    building.join()


def test_missing_hnsw_is_made_as_training_makes_it(trained: Database, here: Settings) -> None:
    definitions = "SELECT indexdef FROM pg_indexes WHERE indexname ~ '_hnsw$' ORDER BY 1"
    with trained.connect() as connection:
        before = connection.scalars(text(definitions)).all()
        names = connection.scalars(
            text("SELECT indexname FROM pg_indexes WHERE indexname ~ '_hnsw$' ORDER BY 1")
        ).all()
    assert {"image_embedding_1_hnsw", "memory_bank_patch_1_hnsw"} <= set(names)
    run(trained, *(f"DROP INDEX pgdefect.{name}" for name in names))
    found = findings(trained, here, "missing-hnsw")
    assert [f.subject for f in found] == [
        f"pgdefect.{name.removesuffix('_hnsw')}" for name in names
    ]
    assert {(f.severity, f.remedy) for f in found} == {("fault", fix_command())}
    mended(trained, here, "missing-hnsw", times=len(names))
    with trained.connect() as connection:
        assert connection.scalars(text(definitions)).all() == before
    bank = active_detector(trained, "parts").bank
    with trained.connect() as connection:
        connection.execute(text("SET LOCAL enable_seqscan = off"))
        positions, _ = score_patches(
            connection, bank, unit_vectors(3, 5, bank.embedding_dim), ef=200
        )
        exact, _ = score_patches(
            connection, bank, unit_vectors(3, 5, bank.embedding_dim), exact=True
        )
    assert positions.tolist() == exact.tolist()


def test_hnsw_built_otherwise_is_built_again(trained: Database, here: Settings) -> None:
    """By an older version, with other parameters or for another operator; whatever came between."""
    definitions = "SELECT indexdef FROM pg_indexes WHERE indexname ~ '_hnsw' ORDER BY 1"
    with trained.connect() as connection:
        before = connection.scalars(text(definitions)).all()
    bank, images = "memory_bank_patch_1_hnsw", "image_embedding_1_hnsw"
    [of_bank] = [one for one in before if f" {bank} " in one]
    [of_images] = [one for one in before if f" {images} " in one]
    assert "WITH (m='12', ef_construction='112')" in of_bank
    run(
        trained,
        f"DROP INDEX pgdefect.{bank}, pgdefect.{images}",
        of_bank.replace("m='12'", "m='16'").replace("ef_construction='112'", "ef_construction=64"),
        of_images + " WITH (m = 4)",
        # Somebody's own, on the same table.
        of_images.replace(images, "mine").replace("cosine", "l2"),
    )
    found = findings(trained, here, "hnsw-definition")
    assert [(f.severity, f.subject, f.remedy) for f in found] == [
        ("warning", f"pgdefect.{images}", fix_command()),
        ("warning", f"pgdefect.{bank}", fix_command()),
    ]
    assert "m = 4, ef_construction = 64, and this pgdefect builds" in found[0].message
    assert "m = 16, ef_construction = 64, and this pgdefect builds" in found[1].message
    assert "m = 12, ef_construction = 112: searches are slower" in found[1].message
    mended(trained, here, "hnsw-definition", times=2)
    run(trained, "DROP INDEX pgdefect.mine")
    with trained.connect() as connection:
        assert connection.scalars(text(definitions)).all() == before


def test_hnsw_that_no_search_can_use(trained: Database, here: Settings) -> None:
    name = "memory_bank_patch_1_hnsw"
    with trained.connect() as connection:
        before = connection.scalar(
            text("SELECT indexdef FROM pg_indexes WHERE indexname = :name"), {"name": name}
        )
    assert before is not None
    run(trained, f"DROP INDEX pgdefect.{name}", before.replace("cosine", "l2"))
    [finding] = findings(trained, here, "hnsw-definition")
    assert finding.severity == "fault"
    assert "vector_l2_ops" in finding.message
    assert "no search can use it" in finding.message
    mended(trained, here, "hnsw-definition")


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_a_rebuild_of_hnsw_that_was_interrupted(
    trained: Database, here: Settings, step: int
) -> None:
    """After any of its steps: dropping an older trial, building, dropping the old, renaming."""
    name = "memory_bank_patch_1_hnsw"
    with trained.connect() as connection:
        before = connection.scalar(
            text("SELECT indexdef FROM pg_indexes WHERE indexname = :name"), {"name": name}
        )
    assert before is not None
    new = before.replace(name, f"{name}_new")
    if step == 1:
        run(trained, new.replace("m='12'", "m='5'"))
    elif step == 2:
        run(trained, f"DROP INDEX pgdefect.{name}", before.replace("m='12'", "m='5'"), new)
    elif step == 3:
        run(trained, f"ALTER INDEX pgdefect.{name} RENAME TO {name}_new")
    else:
        run(trained, new)
    [finding] = findings(trained, here, "hnsw-definition")
    assert ("interrupted" in finding.message) == (step != 2)
    mended(trained, here, "hnsw-definition")
    with trained.connect() as connection:
        after = connection.scalars(
            text("SELECT indexdef FROM pg_indexes WHERE tablename = 'memory_bank_patch_1'")
        ).all()
    assert [one for one in after if "hnsw" in one] == [before]


def test_every_parent_with_vectors_is_searched_or_said_not_to_be(database: Database) -> None:
    """A new partitioned table belongs in one of the two lists."""
    with database.connect() as connection:
        parents = connection.scalars(
            text("""
            SELECT DISTINCT c.relname FROM pg_partitioned_table p
            JOIN pg_class c ON c.oid = p.partrelid
            JOIN pg_attribute a ON a.attrelid = c.oid JOIN pg_type t ON t.oid = a.atttypid
            WHERE c.relnamespace = 'pgdefect'::regnamespace AND t.typname IN ('vector', 'halfvec')
            """)
        ).all()
    assert set(parents) <= SEARCHED | UNSEARCHED
    assert {"memory_bank_patch", "image_embedding"} <= set(parents)


def test_unused_index(trained: Database, here: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    add_images(trained, "many", 3000)
    wide = "||".join(["sha256"] + [f"md5(sha256 || '{n}')" for n in range(12)])
    run(trained, f"CREATE INDEX idle ON pgdefect.image (({wide}))")
    assert findings(trained, here, "unused-index") == []  # counted for too short a time
    monkeypatch.setattr(indexes, "UNUSED_DAYS", -1)
    [finding] = findings(trained, here, "unused-index")
    assert finding.severity == "note"
    assert finding.remedy == ('pgdefect db psql -- -c "DROP INDEX CONCURRENTLY pgdefect.idle"')


def test_statistics_and_dead_rows(trained: Database, here: Settings) -> None:
    run(
        trained,
        "ALTER TABLE pgdefect.image SET (autovacuum_enabled = off)",
        # Autovacuum may have come by while the template was made.
        "SELECT pg_clear_attribute_stats('pgdefect', 'image', attname, false) FROM pg_attribute "
        "WHERE attrelid = 'pgdefect.image'::regclass AND attnum > 0 AND NOT attisdropped",
    )
    add_images(trained, "many", 3000)
    counted(trained)
    [finding] = findings(trained, here, "old-statistics", "dead-rows")
    assert (finding.severity, finding.check) == ("warning", "old-statistics")
    assert "never analysed" in finding.message
    mended(trained, here, "old-statistics", besides="missing-folder")
    run(trained, "UPDATE pgdefect.image SET num_bytes = 2")
    counted(trained)
    dead, old = findings(trained, here, "old-statistics", "dead-rows")
    assert "3,029 dead rows" in dead.message
    assert "3,029 rows have changed" in old.message
    report = examine(trained, here, fix=True)
    assert {one.error for one in report.fixed} == {None}
    assert findings(trained, here, "old-statistics", "dead-rows") == []


def test_rows_analysed_by_the_transaction_that_added_them(
    trained: Database, here: Settings
) -> None:
    run(
        trained,
        "CREATE TABLE pgdefect.added (id integer) WITH (autovacuum_enabled = off)",
        "BEGIN",
        "INSERT INTO pgdefect.added SELECT generate_series(1, 100000)",
        "ANALYZE pgdefect.added",
        "COMMIT",
    )
    counted(trained)
    assert findings(trained, here, "old-statistics") == []
    run(trained, "INSERT INTO pgdefect.added SELECT generate_series(1, 100000)")
    counted(trained)
    [finding] = findings(trained, here, "old-statistics")
    assert finding.subject == "pgdefect.added"


def test_rows_that_somebody_still_sees_are_not_blamed_on_rights(
    trained: Database, here: Settings
) -> None:
    run(trained, "ALTER TABLE pgdefect.image SET (autovacuum_enabled = off)")
    add_images(trained, "many", 3000)
    counted(trained)
    with psycopg.connect(trained.url) as reader:
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        reader.execute("SELECT count(*) FROM pgdefect.image")
        run(trained, "UPDATE pgdefect.image SET num_bytes = 2")
        trained.dispose()
        report = examine(trained, here, fix=True)
    said = {one.finding.check: one.error for one in report.fixed}
    assert "a transaction that began before may still see these rows" in str(said["dead-rows"])


# -- partitions ----------------------------------------------------------------------------


def test_orphaned_partitions_are_dropped(trained: Database, here: Settings) -> None:
    run(
        trained,
        "DELETE FROM pgdefect.detector",
        "CREATE TABLE pgdefect.memory_bank_patch_77 (LIKE pgdefect.memory_bank_patch)",
        "CREATE TABLE pgdefect.memory_bank_raw_78 PARTITION OF pgdefect.memory_bank_raw "
        "FOR VALUES IN (78)",
        "CREATE TABLE pgdefect.image_embedding_99 PARTITION OF pgdefect.image_embedding "
        "FOR VALUES IN (99)",
        "CREATE TABLE pgdefect.memory_bank_patch_notes (x integer)",
    )
    found = findings(trained, here, "orphaned-partition")
    with trained.connect() as connection:
        there = connection.scalar(text("SELECT to_regclass('pgdefect.memory_bank_raw_1')"))
    raw = ["memory_bank_raw_1"] if there else []
    assert [f.subject.removeprefix("pgdefect.") for f in found] == [
        "image_embedding_99",
        "memory_bank_patch_1",
        "memory_bank_patch_77",
        *raw,
        "memory_bank_raw_78",
    ]
    assert {(f.severity, f.remedy) for f in found} == {("fault", fix_command())}
    report = examine(trained, here, fix=True)
    assert [one.error for one in report.fixed] == [None] * (4 + len(raw))
    assert report.faults == 0
    assert bank_tables(trained) == ["memory_bank_patch_notes"]
    assert [f.check for f in report.findings if f.severity == "note"] == ["unused-extractor"]


def test_deletion_that_was_interrupted(trained: Database, here: Settings) -> None:
    with psycopg.connect(trained.url) as reader:
        reader.execute("SELECT FROM pgdefect.memory_bank_patch LIMIT 1")
        interrupted(
            trained,
            "ALTER TABLE pgdefect.memory_bank_patch "
            "DETACH PARTITION pgdefect.memory_bank_patch_1 CONCURRENTLY",
        )
    [finding] = findings(trained, here, "detached-partition", "orphaned-partition")
    assert finding.check == "detached-partition"
    assert finding.remedy == "pgdefect delete --detector 1 --yes"
    delete_detector(trained, 1)
    assert bank_tables(trained) == []
    assert findings(trained, here, "detached-partition", "orphaned-partition") == []


def test_detachment_that_was_interrupted_of_a_bank_that_is_gone(
    trained: Database, here: Settings
) -> None:
    with psycopg.connect(trained.url) as reader:
        reader.execute("SELECT FROM pgdefect.memory_bank_patch LIMIT 1")
        interrupted(
            trained,
            "ALTER TABLE pgdefect.memory_bank_patch "
            "DETACH PARTITION pgdefect.memory_bank_patch_1 CONCURRENTLY",
        )
    run(trained, "DELETE FROM pgdefect.detector")
    examine(trained, here, fix=True)
    assert bank_tables(trained) == []


def test_lost_partition(trained: Database, here: Settings) -> None:
    run(trained, "DROP TABLE pgdefect.memory_bank_patch_1", "DROP TABLE pgdefect.image_embedding_1")
    embeddings, bank = findings(trained, here, "missing-partition")
    assert bank.remedy.startswith("pgdefect delete --detector 1 --yes")
    statement = embeddings.remedy.partition('"')[2].rstrip('"')
    run(trained, statement)
    assert [f.subject for f in findings(trained, here, "missing-partition")] == [bank.subject]


# -- contents ------------------------------------------------------------------------------


def test_vectors_that_no_search_finds(trained: Database, here: Settings) -> None:
    run(
        trained,
        "ALTER TABLE pgdefect.memory_bank_patch ALTER embedding DROP NOT NULL",
        "UPDATE pgdefect.memory_bank_patch SET embedding = NULL WHERE position = 1",
        "UPDATE pgdefect.memory_bank_patch SET embedding = "
        "array_fill(0, ARRAY[vector_dims(embedding)])::vector WHERE position IN (2, 3)",
        "DELETE FROM pgdefect.memory_bank_patch WHERE position = 4",
        "UPDATE pgdefect.image_embedding SET embedding = "
        "array_fill(0, ARRAY[vector_dims(embedding)])::halfvec WHERE image_id = 1",
    )
    found = {
        (f.check, f.subject): f
        for f in findings(trained, here, "null-vectors", "zero-vectors", "wrong-count")
    }
    bank = "pgdefect.memory_bank_patch_1"
    assert found["null-vectors", bank].message.startswith("1 vectors are NULL")
    assert found["zero-vectors", bank].message.startswith("2 vectors are zero")
    promised = active_detector(trained, "parts").bank.num_vectors
    assert (
        f"{promised - 1} vectors, and the bank was stored with {promised}"
        in found["wrong-count", bank].message
    )
    assert {found[c, bank].remedy for c in ("null-vectors", "zero-vectors", "wrong-count")} == {
        "pgdefect train parts"
    }
    remedy = found["zero-vectors", "pgdefect.image_embedding_1"].remedy
    run(trained, remedy.split('"')[1])
    assert ("zero-vectors", "pgdefect.image_embedding_1") not in {
        (f.check, f.subject) for f in findings(trained, here, "zero-vectors")
    }


def test_images_a_bank_has_lost(trained: Database, here: Settings) -> None:
    run(trained, "UPDATE pgdefect.memory_bank_patch SET image_id = 999 WHERE position = 0")
    [finding] = findings(trained, here, "lost-images")
    assert (finding.severity, finding.subject) == ("warning", "memory bank 1")


@pytest.mark.parametrize(
    ("damage", "check"),
    [
        ("DELETE FROM pgdefect.detector_threshold", "no-threshold"),
        ("UPDATE pgdefect.detector SET threshold = 'Infinity'", "no-threshold"),
        ("UPDATE pgdefect.detector SET threshold = 3", "threshold-differs"),
        ("DELETE FROM pgdefect.memory_bank", "incomplete-detector"),
        ("UPDATE pgdefect.detector SET kind = 'efficient_ad'", "incomplete-detector"),
    ],
)
def test_detector_without_what_it_judges_by(
    trained: Database, here: Settings, damage: str, check: str
) -> None:
    run(trained, damage)
    [finding] = findings(trained, here, check)
    assert finding.severity == "fault"
    assert "detector 1" in finding.subject
    assert finding.remedy.startswith("pgdefect threshold parts --detector 1 --") or (
        check == "incomplete-detector" and finding.remedy == "pgdefect delete --detector 1 --yes"
    )


@pytest.mark.parametrize("damage", ["''", "onnx || '\\x00'::bytea"])
def test_network_that_was_damaged(
    trained: Database, here: Settings, settings: Settings, damage: str
) -> None:
    with trained.connect() as connection:
        digest = connection.scalar(text("SELECT onnx_sha256 FROM pgdefect.extractor"))
    good = load_extractor(trained, 1, here.cache_dir)
    shutil.rmtree(here.cache_dir)
    run(trained, f"UPDATE pgdefect.extractor SET onnx = {damage}")
    [finding] = findings(trained, here, "broken-network", "restorable-network")
    assert finding.check == "broken-network"
    assert ("is missing" in finding.message) == (damage == "''")
    assert finding.remedy.endswith("pgdefect train parts")
    # A machine that has inspected keeps a copy.
    copy = here.cache_dir / "extractors" / f"{digest}.onnx"
    copy.parent.mkdir(parents=True)
    copy.write_bytes(good.onnx)
    assert {f.check for f in findings(trained, here, "broken-network", "restorable-network")} == {
        "broken-network",
        "restorable-network",
    }
    mended(trained, here, "restorable-network")
    shutil.rmtree(here.cache_dir)
    assert load_extractor(trained, 1, here.cache_dir).onnx == good.onnx


def test_training_again_replaces_a_damaged_network(database: Database) -> None:
    number = add_extractor(database, 3)
    spec = ExtractorSpec("none", ("layer",), {"image_size": [64, 64]}, "nowhere", "0" * 64)
    assert find_extractor(database, spec.fingerprint) == number
    run(database, "UPDATE pgdefect.extractor SET onnx = 'x'")
    assert find_extractor(database, spec.fingerprint) is None
    assert store_extractor(database, ExtractorArtifact(spec, 3, 4, 4, b"a graph")) == number
    assert find_extractor(database, spec.fingerprint) == number
    assert count(database, "pgdefect.extractor", "onnx = 'a graph'") == 1


def test_damaged_copy_of_a_network_is_removed(trained: Database, here: Settings) -> None:
    load_extractor(trained, 1, here.cache_dir)
    [copy] = (here.cache_dir / "extractors").glob("*.onnx")
    copy.write_bytes(copy.read_bytes()[:-1])
    [finding] = findings(trained, here, "broken-cache")
    assert (finding.severity, finding.subject) == ("warning", str(copy))
    mended(trained, here, "broken-cache")
    assert not copy.exists()


def test_extractor_that_nothing_uses(trained: Database, here: Settings) -> None:
    number = add_extractor(trained, 3)
    [finding] = findings(trained, here, "unused-extractor")
    assert (finding.severity, finding.subject) == ("note", f"extractor {number}")
    run(trained, finding.remedy.partition('"')[2].rstrip('"'))
    assert examine(trained, here).faults == 0
    assert findings(trained, here, "unused-extractor") == []


def test_large_tables_are_read_when_asked(
    trained: Database, here: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pgdefect.db.doctor import contents

    monkeypatch.setattr(contents, "BIG", 1)
    run(trained, "DELETE FROM pgdefect.memory_bank_patch WHERE position = 4")
    found = findings(trained, here, "vectors-not-read", "wrong-count")
    assert {f.check for f in found} == {"vectors-not-read"}
    assert {f.remedy for f in found} == {"pgdefect doctor --thorough"}
    found = findings(trained, here, "vectors-not-read", "wrong-count", thorough=True)
    assert [f.check for f in found] == ["wrong-count"]


# -- server --------------------------------------------------------------------------------


def test_memory_too_small_for_the_largest_index(trained: Database, here: Settings) -> None:
    name = database_name(trained)
    run(
        trained,
        f"ALTER DATABASE {name} SET maintenance_work_mem = '64kB'",
        f"ALTER DATABASE {name} SET effective_cache_size = '64kB'",
    )
    found = findings(trained, here, "memory")
    assert [f.subject for f in found] == ["effective_cache_size", "maintenance_work_mem"]
    assert {f.severity for f in found} == {"warning"}
    assert "memory_bank_patch_1_hnsw" in found[0].message
    assert "ALTER SYSTEM SET maintenance_work_mem = '1MB'" in found[1].remedy


def test_shared_memory_of_a_container(trained: Database) -> None:
    with trained.connect() as connection:
        [memory, kind] = connection.execute(
            text(
                "SELECT pg_size_bytes(current_setting('maintenance_work_mem')), "
                "current_setting('dynamic_shared_memory_type')"
            )
        ).one()
        assert list(server.check_shared_memory(connection, memory + (1 << 30))) == []
        found = list(server.check_shared_memory(connection, 64 << 20))
        # The embedded server keeps out of a small /dev/shm by itself.
        assert len(found) == (kind == "posix")
        assert all("--shm-size=" in finding.remedy for finding in found)


@pytest.mark.parametrize(
    ("free", "severities"),
    [(1 << 20, ["fault"]), (1 << 30, ["warning"]), (1 << 40, [])],
)
def test_disk_space(trained: Database, free: int, severities: list[str]) -> None:
    with trained.connect() as connection:
        found = list(server.check_disk(connection, "/somewhere", free))
    assert [f.severity for f in found] == severities
    assert all("are free" in f.message for f in found)


def test_older_extension(trained: Database, here: Settings) -> None:
    run(trained, "UPDATE pg_extension SET extversion = '0.8.4' WHERE extname = 'vector'")
    [finding] = findings(trained, here, "extension")
    assert finding.severity == "warning"
    assert "ALTER EXTENSION vector UPDATE" in finding.remedy
    run(trained, "UPDATE pg_extension SET extversion = '0.8.2' WHERE extname = 'vector'")
    trained.dispose()
    [finding] = examine(trained, here).findings
    assert (finding.severity, finding.check) == ("fault", "server")
    assert "0.8.4 or newer" in finding.message


def test_schema_that_is_not_the_codes(
    trained: Database, empty_database: Database, here: Settings
) -> None:
    run(trained, "DROP FUNCTION defect.rejudge")
    [finding] = findings(trained, here, "schema")
    assert (finding.severity, finding.remedy) == ("fault", "pgdefect db upgrade")
    assert "rejudge" in finding.message
    report = examine(empty_database, here)
    assert report.faults == 1
    assert report.findings[0].check == "schema"


def test_rights_that_grew(trained: Database, here: Settings) -> None:
    with roles_of(trained, analyst_7="reader"):
        assert findings(trained, here, "roles") == []
        run(
            trained,
            f"GRANT TEMPORARY ON DATABASE {database_name(trained)} TO PUBLIC",
            "GRANT pg_read_server_files TO analyst_7",
        )
        login, lacking = findings(trained, here, "roles")
        assert "member of pg_read_server_files" in login.message
        assert "REVOKE CREATE, TEMPORARY" in lacking.message
        assert lacking.remedy == "pgdefect db role setup"


def test_reader_sees_what_it_may_and_mends_nothing(trained: Database, here: Settings) -> None:
    with roles_of(trained, analyst_8="reader"):
        run(trained, "DROP INDEX pgdefect.memory_bank_patch_1_hnsw")
        reader = as_login(trained, "analyst_8")
        report = examine(reader, here, fix=True)
        assert [f.check for f in report.findings if f.severity == "fault"] == ["missing-hnsw"]
        [fixed] = report.fixed
        assert fixed.error is not None
        reader.dispose()


# -- files ---------------------------------------------------------------------------------


def test_folders_and_files_that_are_gone(
    trained: Database, here: Settings, parts: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(parts, copy)
    run(trained, f"UPDATE pgdefect.image_root SET path = '{copy}'")
    for name in ("train/good/000.png", "ground_truth/stain/000_mask.png"):
        (copy / name).unlink()
    assert findings(trained, here, "missing-files") == []
    [finding] = findings(trained, here, "missing-files", files=True)
    assert finding.message.startswith("2 files of parts are gone")
    assert finding.remedy == f"pgdefect ingest {copy} --category parts --accept-changes"
    shutil.rmtree(copy)
    [finding] = findings(trained, here, "missing-files", "missing-folder", files=True)
    assert (finding.check, finding.subject) == ("missing-folder", str(copy))
    assert finding.remedy == f"pgdefect move-root {copy} NEW"


def test_pictures_that_no_row_names(trained: Database, here: Settings) -> None:
    stray = here.data_dir / "simulated" / "parts" / "stray.png"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"x")
    assert findings(trained, here, "orphaned-files") == []
    [finding] = findings(trained, here, "orphaned-files", files=True)
    assert "stray.png" in finding.message
