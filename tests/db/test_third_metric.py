"""A metric added to the table is the one that Python and SQL compute, everywhere.

Judged by SciPy, and by PatchCore's equation written out here. Of two metrics a "cosine, else
Euclid" somewhere goes unnoticed.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import psycopg
import pytest
from manhattan import L1, LET_IN
from rows import add_extractor, add_images, index_scanned, memory_bank, store
from scipy.spatial.distance import cdist
from sqlalchemy import text

from pgdefect.core.distance import METRICS
from pgdefect.core.types import BankInfo, Float32, MemoryBank
from pgdefect.db.connection.engine import Database, driver
from pgdefect.db.records.detectors import active_detector
from pgdefect.db.records.patches import store_image_patches
from pgdefect.db.schema.schema import upgrade
from pgdefect.db.search.queries import prove_worst, score_patches
from pgdefect.db.search.recall import check_recall
from pgdefect.usecases.common.patch_search import open_search, score_image

DIM, GRID = 12, (4, 4)


@pytest.fixture
def bank(database: Database, monkeypatch: pytest.MonkeyPatch) -> MemoryBank:
    """A detector of category parts, whose bank compares by L1."""
    monkeypatch.setitem(METRICS, "l1", L1)
    with database.begin() as connection:
        connection.execute(text(LET_IN))
    # The SQL function that knows the metrics follows the table.
    assert upgrade(database).sql_files == ("internal/metric_length.sql",)
    images = add_images(database, "parts", 11)
    vectors = np.random.default_rng(6).normal(0, 2, (400, DIM)).astype(np.float32)
    made = replace(memory_bank(vectors, images[:10], metric=L1), num_neighbors=4)
    store(database, "parts", add_extractor(database, DIM), made)
    return made


def info(database: Database) -> BankInfo:
    return active_detector(database, "parts").bank


def queries(count: int) -> Float32:
    drawn = np.random.default_rng(5).normal(1, 2, (count, DIM))
    # As patches are kept.
    return drawn.astype(np.float16).astype(np.float32)


def test_nearest_vectors_by_index_and_by_scan(database: Database, bank: MemoryBank) -> None:
    asked = queries(60)
    true = cdist(asked, bank.embeddings, "cityblock")
    with database.connect() as connection:
        positions, exact = score_patches(connection, info(database), asked, exact=True)
        assert info(database).metric is L1
        np.testing.assert_array_equal(positions, true.argmin(axis=1))
        np.testing.assert_allclose(exact, true.min(axis=1), rtol=1e-5)
    with (
        index_scanned(database, f"memory_bank_patch_{info(database).id}_hnsw", 60),
        database.connect() as connection,
    ):
        driver(connection).execute("SET LOCAL enable_seqscan = off")
        positions, found = score_patches(connection, info(database), asked)
    assert (found >= exact - 1e-5).all()
    assert (positions == true.argmin(axis=1)).mean() > 0.9
    with database.connect() as connection:
        # Any position and far too long a distance: the two largest are to be proven.
        wrong = np.zeros(60, dtype=np.int32), np.full(60, 1e3, dtype=np.float32)
        _, proven = prove_worst(connection, info(database), asked, *wrong, num_worst=60)
        similar = connection.execute(
            text('SELECT * FROM defect.similar_patches(:bank, "position" => 7, k => 5)'),
            {"bank": info(database).id},
        ).all()
    np.testing.assert_allclose(proven, true.min(axis=1), rtol=1e-5)
    own = np.sort(cdist(bank.embeddings[[7]], bank.embeddings, "cityblock")[0])[:5]
    np.testing.assert_allclose([row.distance for row in similar], own, rtol=1e-5)
    assert [row.similarity for row in similar] == [None] * 5


def test_image_score_of_python_and_sql(database: Database, bank: MemoryBank) -> None:
    """PatchCore's equation 7 over L1 distances, written out."""
    patches = queries(16)
    true = cdist(patches, bank.embeddings, "cityblock")
    worst = true.min(axis=1).argmax()
    nearest = true[worst].argmin()
    around = cdist(bank.embeddings[[nearest]], bank.embeddings, "cityblock")[0].argsort()[:4]
    lengths = np.exp(true[worst][around])
    expected = true[worst].min() * (1 - lengths[0] / lengths.sum())
    for kind in ("exact", "hnsw"):
        scores = score_image(open_search(database, info(database), kind), patches, GRID)
        assert scores.raw_score == pytest.approx(expected, rel=1e-4)
        assert (scores.worst_row, scores.worst_col) == divmod(worst, 4)
    with database.begin() as connection:
        image = connection.scalar(text("SELECT max(id) FROM pgdefect.image"))
        grid = patches.reshape(*GRID, DIM)
        store_image_patches(connection, 1, [image], [grid])
        found = connection.execute(
            text("SELECT raw_score, bank_position FROM defect.inspect(CAST(:id AS text))"),
            {"id": image},
        ).one()
    assert found.raw_score == pytest.approx(expected, rel=1e-4)
    assert found.bank_position == nearest


def test_recall_is_measured_by_it(database: Database, bank: MemoryBank) -> None:
    [report] = check_recall(database, ["parts"], sample=40)
    assert report.searched == "bank"
    assert report.recall > 0.95


def test_a_metric_that_the_database_does_not_know(database: Database) -> None:
    with (
        database.autocommit() as connection,
        pytest.raises(psycopg.Error, match="unknown metric 'l1'"),
    ):
        connection.execute("SELECT pgdefect.metric_length('l1', 1)")


def test_the_database_lets_in_what_the_table_has(database: Database) -> None:
    """A metric needs a migration, too."""
    with database.connect() as connection:
        allowed = connection.scalar(
            text(
                "SELECT pg_get_constraintdef(oid) FROM pg_constraint "
                "WHERE conname = 'ck_memory_bank_operator_known'"
            )
        )
    assert allowed is not None
    assert all(f"'{metric.operator}'" in allowed for metric in METRICS.values())
