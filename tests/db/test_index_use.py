"""Each hot query walks its HNSW index under the planner's own settings, and finds the nearest.

EXPLAIN of a PL/pgSQL function shows nothing, so the index's own counter is asked.
"""

from __future__ import annotations

import numpy as np
import pytest
from crowds import IMAGES, Crowd
from rows import index_left_alone, index_scanned
from sqlalchemy import text

from pgdefect.core.distance import Precision, as_stored, nearest_vectors, pairwise
from pgdefect.core.types import BankInfo
from pgdefect.db.connection.engine import driver
from pgdefect.db.search.queries import score_patches, similar_patches

KINDS = [(metric, precision) for metric in ("cosine", "l2") for precision in ("half", "single")]
each_kind = pytest.mark.parametrize("kind", KINDS, ids="-".join)


def bank_index(bank: BankInfo) -> str:
    return f"memory_bank_patch_{bank.id}_hnsw"


@pytest.fixture
def images_index(crowd: Crowd) -> str:
    return f"image_embedding_{crowd.extractor_id}_hnsw"


@each_kind
def test_score_patches(crowd: Crowd, kind: tuple[str, Precision]) -> None:
    info, bank = crowd.banks[kind]
    rng = np.random.default_rng(2)
    near = bank.embeddings[rng.integers(IMAGES, size=200)]
    queries = as_stored(near * rng.normal(1, 0.15, near.shape).astype(np.float32), info.precision)
    with (
        index_scanned(crowd.database, bank_index(info), at_least=len(queries)),
        crowd.database.connect() as connection,
    ):
        positions, _ = score_patches(connection, info, queries)
    expected, _ = nearest_vectors(queries, bank.embeddings, bank.metric)
    assert (positions == expected).mean() >= 0.95
    with (
        index_left_alone(crowd.database, bank_index(info)),
        crowd.database.connect() as connection,
    ):
        score_patches(connection, info, queries[:5], exact=True)


@each_kind
def test_nearest_bank_vectors(crowd: Crowd, kind: tuple[str, Precision]) -> None:
    info, bank = crowd.banks[kind]
    statement = "SELECT * FROM pgdefect.nearest_bank_vectors(%s, %s::real[]::vector, 10, %s)"

    def found(n: int, exact: bool) -> set[int]:
        with crowd.database.connect() as connection:
            vector = bank.embeddings[n].tolist()
            rows = driver(connection).execute(statement, [info.id, vector, exact])
            return {row[0] for row in rows}

    with index_scanned(crowd.database, bank_index(info), at_least=20):
        approximate = [found(n, False) for n in range(0, 2000, 100)]
    with index_left_alone(crowd.database, bank_index(info)):
        true = [found(n, True) for n in range(0, 2000, 100)]
    assert recall(approximate, true) >= 0.9


@each_kind
def test_similar_patches(crowd: Crowd, kind: tuple[str, Precision]) -> None:
    info, bank = crowd.banks[kind]
    with index_scanned(crowd.database, bank_index(info), at_least=20):
        found = [
            {n.position for n in similar_patches(crowd.database, info.id, position, 10)}
            for position in range(20)
        ]
    reference = pairwise(bank.metric, bank.embeddings[:20], bank.embeddings)
    assert recall(found, [set(row.argsort()[:10].tolist()) for row in reference]) >= 0.9


def test_calibrated_ef_search_reaches_the_recall_that_is_stored(crowd: Crowd) -> None:
    with crowd.database.connect() as connection:
        rows = connection.execute(
            text("SELECT ef_search, ef_search_recall FROM pgdefect.memory_bank")
        ).all()
    assert len(rows) == len(KINDS)
    for ef_search, reached in rows:
        assert 4 <= ef_search <= 1000
        assert reached >= 0.97


def recall(found: list[set[int]], true: list[set[int]]) -> float:
    hits = sum(len(a & b) for a, b in zip(found, true, strict=True))
    return hits / sum(map(len, true))
