"""The audit trail: what is in it, that it is only added to, and that tampering is found."""

from __future__ import annotations

import threading
import time
from typing import Any

import psycopg
import pytest
from rows import add_extractor, add_images, memory_bank, store, unit_vectors
from sqlalchemy import text

from pgdefect.core.errors import Busy, Conflict
from pgdefect.db.connection.engine import Database
from pgdefect.db.doctor.contents import check_audit_trail
from pgdefect.db.records import lifecycle
from pgdefect.db.records.lifecycle import activate_detector, delete_category, delete_detector

DIM = 8


@pytest.fixture
def parts(database: Database) -> Database:
    """Category `parts` with four images, extractor 1 and detectors 1 and 2, the second active."""
    images = add_images(database, "parts", 4)
    extractor = add_extractor(database, DIM)
    for seed in (1, 2):
        store(database, "parts", extractor, memory_bank(unit_vectors(seed, 40, DIM), images))
    return database


def rows(database: Database, query: str, *parameters: Any) -> list[Any]:
    with psycopg.connect(database.url) as connection:
        return connection.execute(query, parameters).fetchall()


def run(database: Database, *statements: str) -> None:
    with psycopg.connect(database.url) as connection:
        for statement in statements:
            connection.execute(statement)


def trail(database: Database) -> list[tuple[str, str]]:
    return rows(database, "SELECT action, object FROM defect.audit_trail ORDER BY number")


def faults(database: Database) -> list[str]:
    with database.connect() as connection:
        return [finding.message for finding in check_audit_trail(connection)]


def test_every_change_has_its_entry(parts: Database) -> None:
    start = len(trail(parts))
    activate_detector(parts, 1)
    run(
        parts,
        "SELECT defect.set_threshold('parts', 0.4)",
        "SELECT defect.review('1', 'anomalous')",
        "UPDATE pgdefect.image SET retired_at = now() WHERE id = 2",
        "UPDATE pgdefect.category SET retired_at = now()",
    )
    delete_detector(parts, 2)
    delete_category(parts, "parts")
    assert trail(parts)[start:] == [
        ("deactivate", "detector 2"),
        ("activate", "detector 1"),
        ("set threshold", "detector 1"),
        ("review", "image 1"),
        ("retire image", "image 2"),
        ("retire category", "category 1"),
        ("retire", "detector 2"),
        ("delete detector", "detector 2"),
        ("retire, deactivate", "detector 1"),
        ("delete detector", "detector 1"),
        ("delete images", "images"),
        ("delete reviews", "reviews"),
        ("delete category", "category 1"),
    ]
    [(before, after)] = rows(
        parts,
        "SELECT before->>'threshold', after->>'threshold' FROM defect.audit_trail "
        "WHERE action = 'set threshold'",
    )
    assert (before, after) == ("0.5", "0.4")
    [(images, first)] = rows(
        parts,
        "SELECT before->'images', before->'first'->0->>1 FROM defect.audit_trail "
        "WHERE action = 'delete images'",
    )
    assert (images, first) == (4, "00000.png")
    assert faults(parts) == []


def test_what_is_rolled_back_leaves_no_entry_and_no_gap(parts: Database) -> None:
    before = trail(parts)
    with psycopg.connect(parts.url) as connection:
        connection.execute("SELECT defect.set_threshold('parts', 0.4)")
        connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
        connection.rollback()
    run(parts, "SELECT defect.set_threshold('parts', 0.3)")
    assert trail(parts) == [*before, ("set threshold", "detector 2")]
    assert faults(parts) == []


def test_sessions_that_review_at_once_form_one_chain(parts: Database) -> None:
    failures: list[BaseException] = []

    def review(image: int) -> None:
        try:
            for _ in range(10):
                run(parts, f"SELECT defect.review('{image}', 'normal')")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=review, args=(image,)) for image in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len([entry for entry in trail(parts) if entry[0] == "review"]) == 30
    assert faults(parts) == []


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE pgdefect.audit SET who = 'somebody'",
        "DELETE FROM pgdefect.audit",
        "TRUNCATE pgdefect.audit",
        "DELETE FROM pgdefect.audit_head",
        "INSERT INTO pgdefect.audit_head VALUES (7, '')",
        "TRUNCATE pgdefect.audit_head",
    ],
)
def test_the_trail_is_only_added_to_by_the_owner_too(parts: Database, statement: str) -> None:
    with pytest.raises(psycopg.Error, match="is only added to") as caught:
        run(parts, statement)
    assert caught.value.sqlstate == "PD409"


PAST_TRIGGERS = {
    "an entry changed": (
        "UPDATE pgdefect.audit SET who = 'somebody' WHERE number = 2",
        "its hash is not that",
    ),
    "a time changed": (
        "UPDATE pgdefect.audit SET at = at + interval '1 microsecond' WHERE number = 2",
        "its hash is not that",
    ),
    "an entry removed": ("DELETE FROM pgdefect.audit WHERE number = 2", "entry 3 follows entry 1"),
    "the newest removed": (
        "DELETE FROM pgdefect.audit WHERE number = (SELECT max(number) FROM pgdefect.audit)",
        "not the one that was written last",
    ),
    "a threshold changed past it": (
        "UPDATE pgdefect.detector SET threshold = 0.77 WHERE id = 2",
        "detector 2 is not as the trail left it: threshold 0.77",
    ),
    "deactivated past it": (
        "UPDATE pgdefect.detector SET active = false",
        "detector 2 is not as the trail left it",
    ),
}


@pytest.mark.parametrize(
    ("statement", "said"),
    PAST_TRIGGERS.values(),
    ids=[key.replace(" ", "_") for key in PAST_TRIGGERS],
)
def test_doctor_sees_what_the_owner_did_past_the_triggers(
    parts: Database, statement: str, said: str
) -> None:
    assert faults(parts) == []
    run(parts, "SET session_replication_role = replica", statement)
    assert said in " ".join(faults(parts))


def test_cost_of_an_entry_is_bounded(parts: Database) -> None:
    """A thousand reviews in one transaction: the trail is written at its end."""
    began = time.perf_counter()
    run(
        parts,
        "INSERT INTO pgdefect.review (image_id, label) "
        "SELECT 1 + n % 4, 'normal' FROM generate_series(1, 1000) n",
    )
    assert time.perf_counter() - began < 30
    assert faults(parts) == []


# -- deletions that somebody stands in the way of, and banks that are not whole ------------------


def test_deletion_that_a_reader_blocks_changes_nothing_and_names_it(
    parts: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "LOCK_WAIT", 0.5)
    with psycopg.connect(parts.url, application_name="somebody's psql") as reader:
        reader.execute("SELECT count(*) FROM pgdefect.memory_bank_patch")
        with pytest.raises(
            Busy, match=rf"{reader.info.backend_pid} .*somebody's psql.*Nothing was"
        ):
            delete_detector(parts, 1)
    assert rows(parts, "SELECT state FROM pgdefect.detector WHERE id = 1") == [("ready",)]
    assert rows(parts, "SELECT count(*) FROM pg_inherits WHERE inhdetachpending") == [(0,)]
    activate_detector(parts, 1)
    delete_detector(parts, 1)
    assert rows(parts, "SELECT id FROM pgdefect.detector") == [(2,)]


def test_a_bank_that_is_not_whole_is_not_activated(parts: Database) -> None:
    with parts.autocommit() as connection:
        connection.execute(
            "ALTER TABLE pgdefect.memory_bank_patch DETACH PARTITION pgdefect.memory_bank_patch_1"
        )
    with pytest.raises(Conflict, match=r"0 of its 40 vectors .* partition is detached"):
        activate_detector(parts, 1)
    with parts.begin() as connection:
        connection.execute(text("DELETE FROM pgdefect.memory_bank_patch WHERE position = 7"))
    with pytest.raises(Conflict, match="39 of its 40 vectors are in the memory bank"):
        activate_detector(parts, 2)
    assert rows(parts, "SELECT id FROM pgdefect.detector WHERE active") == [(2,)]
