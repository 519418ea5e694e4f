"""What indexes find beside NumPy; what --fix stores is what searches then use."""

from __future__ import annotations

import numpy as np
import pytest
from crowds import Crowd
from rows import add_embeddings, add_extractor, add_images, memory_bank, store, unit_vectors
from sqlalchemy import text

from pgdefect.core.errors import NotFound
from pgdefect.db.connection.binary_format import read_keyed_vectors
from pgdefect.db.connection.engine import Database, driver
from pgdefect.db.search.recall import TARGET, check_recall
from pgdefect.db.search.search import SearchFilter, explain_nearest


def test_every_index_is_compared(crowd: Crowd) -> None:
    reports = check_recall(crowd.database, sample=60)
    assert [report.searched for report in reports] == ["bank"] * 4 + ["picture", "defect", "region"]
    for report in reports:
        assert report.num_queries == 60
        assert report.k == (1 if report.searched == "bank" else 10)
        assert 0.9 < report.recall <= 1
        assert 0 <= report.worst_recall <= report.recall
        assert 0 < report.p50_ms <= report.p99_ms
        assert report.ef_needed is not None
    assert {r.num_vectors for r in reports if r.searched == "picture"} == {6000}
    regions = next(r for r in reports if r.searched == "region")
    assert regions.num_vectors == len(crowd.vectors["region"])


def test_only_what_named_categories_use(crowd: Crowd) -> None:
    reports = check_recall(crowd.database, ["l2_half"], sample=5)
    assert [(r.searched, r.subject) for r in reports[:1]] == [("bank", "l2_half version 1")]
    assert [r.searched for r in reports[1:]] == ["picture", "defect", "region"]
    with pytest.raises(NotFound, match=r"no category 'felt'; known: .*l2_half"):
        check_recall(crowd.database, ["felt"])


def test_an_index_that_finds_too_little_is_searched_for_longer(database: Database) -> None:
    extractor = add_extractor(database, 24)
    ids = add_images(database, "parts", 2000)
    add_embeddings(database, extractor, ids, unit_vectors(1, 2000, 24))
    with database.begin() as connection:
        connection.execute(
            text("INSERT INTO pgdefect.search_setting VALUES (:extractor, 'picture', 11, 0.5)"),
            {"extractor": extractor},
        )
    [poor] = check_recall(database, sample=100)
    assert not poor.ok
    assert poor.ef_search == 11
    assert poor.ef_needed is not None
    assert poor.ef_needed > 14
    [fixed] = check_recall(database, sample=100, fix=True)
    assert fixed.ok
    # So many may do now, and fail when the table has grown.
    assert poor.ef_needed < 100
    assert (fixed.ef_search, fixed.ef_before) == (100, 11)
    [again] = check_recall(database, sample=100)
    assert (again.ef_search, again.recall) == (fixed.ef_search, fixed.recall)
    plan = explain_nearest(database, "picture", extractor, 2, SearchFilter())
    assert plan.ef_search == fixed.ef_search
    with database.connect() as connection:
        stored = connection.execute(
            text("SELECT searched, ef_search, recall FROM pgdefect.search_setting")
        ).one()
    assert tuple(stored) == ("picture", fixed.ef_search, fixed.recall)
    assert fixed.recall >= TARGET


@pytest.mark.parametrize("before", [None, 10])
def test_what_nine_vectors_need_is_not_stored(database: Database, before: int | None) -> None:
    """ef_search 10 finds all of nine, and 0.9 of a thousand."""
    extractor = add_extractor(database, 24)
    add_embeddings(database, extractor, add_images(database, "few", 9), unit_vectors(3, 9, 24))
    if before is not None:
        with database.begin() as connection:
            connection.execute(
                text("INSERT INTO pgdefect.search_setting VALUES (:id, 'picture', :ef, 1)"),
                {"id": extractor, "ef": before},
            )
    [few] = check_recall(database, fix=True)
    assert few.ef_needed == 10
    assert few.ef_search == 100
    add_embeddings(
        database, extractor, add_images(database, "many", 1000), unit_vectors(4, 1000, 24)
    )
    [many] = check_recall(database, sample=50)
    assert many.ok
    assert many.ef_needed is not None
    assert many.ef_needed > 10


def test_a_bank_keeps_the_longer_search_it_was_calibrated_for(database: Database) -> None:
    extractor = add_extractor(database, 24)
    ids = add_images(database, "parts", 5)
    bank = store(database, "parts", extractor, memory_bank(unit_vectors(2, 2000, 24), ids))

    def ef_search(value: int | None = None) -> int:
        with database.begin() as connection:
            return connection.scalar(
                text(
                    "UPDATE pgdefect.memory_bank SET ef_search = coalesce(:ef, ef_search), "
                    "ef_search_fast = 4 WHERE id = :id RETURNING ef_search"
                ),
                {"ef": value, "id": bank},
            )

    ef_search(640)
    [report] = check_recall(database, sample=100, fix=True)
    assert report.ok
    assert report.ef_before is None
    assert ef_search() == 640
    ef_search(4)
    [report] = check_recall(database, sample=100, fix=True)
    assert report.ok
    assert report.ef_before == 4
    assert ef_search() == report.ef_search > 4


def test_nothing_to_compare(database: Database) -> None:
    add_extractor(database, 8)
    assert check_recall(database) == []


@pytest.mark.parametrize("count", [0, 1, 5, 12, 13])
def test_vectors_are_read_in_blocks(database: Database, count: int) -> None:
    extractor = add_extractor(database, 8)
    ids = add_images(database, "parts", 13)[:count]
    vectors = unit_vectors(0, 13, 8)[:count].astype(np.float16)
    add_embeddings(database, extractor, ids, vectors.astype(np.float32))
    from psycopg import sql

    query = sql.SQL(
        "SELECT image_id, embedding::vector FROM pgdefect.image_embedding ORDER BY image_id"
    )
    with database.connect() as connection:
        blocks = list(read_keyed_vectors(driver(connection), query, 6))
    assert [len(keys) for keys, _ in blocks] == [6] * (count // 6) + [count % 6] * (count % 6 > 0)
    if count:
        assert np.concatenate([keys for keys, _ in blocks]).tolist() == ids
        np.testing.assert_array_equal(np.concatenate([v for _, v in blocks]), vectors)
