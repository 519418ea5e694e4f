"""How many of the true nearest neighbors each HNSW index finds, and what finding more takes.

An index is asked with vectors it does not hold. Its own would flatter it: each is linked to its
nearest ones, and the search for them begins at the goal. A query is a stored vector moved away
from one of its ten nearest by their distance, `2 a - b`, about where a new image would lie. On a
million patches of magnetic tiles with 150 queries, recall@10 at ef_search 120, 160 and 240 was
0.971, 0.984 and 0.997 for such queries, 0.971, 0.983 and 0.999 for patches of images kept out,
and 0.978, 0.983 and 0.989 for the index's own; at 20 it was 0.86, 0.78 and 0.93.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg import sql
from sqlalchemy import text

from pgdefect.core.distance import COSINE, Metric, as_stored, metric_named, pairwise
from pgdefect.core.errors import NotFound
from pgdefect.core.progress import Progress
from pgdefect.core.types import Float32, SearchBy
from pgdefect.db.connection.binary_format import read_keyed_vectors
from pgdefect.db.connection.engine import Database, Vector, VectorArray, driver
from pgdefect.db.schema.bank_tables import EF_SEARCH_CHOICES, partition_name

__all__ = ["TARGET", "IndexRecall", "check_recall"]

TARGET = 0.99
NEIGHBORS = 10
DEFAULT_SAMPLE = 200
DEFAULT_EF_SEARCH = 100
"""Of searches among images; pgdefect.searched_vectors has the same."""
ENOUGH_VECTORS, ENOUGH_QUERIES = 10_000, 100
"""What it takes to trust a smaller ef_search: a table of images grows, and of nine vectors any
search finds all. A bank does not grow."""
_BLOCK = 16_384


@dataclass(frozen=True)
class IndexRecall:
    """What an index finds of the `k` nearest of vectors that it does not hold.

    Attributes:
        searched: ``bank``, or what is searched by.
        subject: the bank's category and version, or the extractor.
        recall: mean over the queries, worst_recall: of the worst one.
        p50_ms, p99_ms: one query alone, as a statement.
        ef_search: in force.
        ef_needed: the least that reaches `TARGET`, None where none does.
        ef_before: where a fix changed it.
    """

    index: str
    searched: Literal["bank", "picture", "defect", "region"]
    subject: str
    num_vectors: int
    num_queries: int
    k: int
    recall: float
    worst_recall: float
    p50_ms: float
    p99_ms: float
    ef_search: int
    ef_needed: int | None
    ef_before: int | None = None

    @property
    def ok(self) -> bool:
        return self.recall >= TARGET


class _Index(NamedTuple):
    """An index to ask, and whose it is; key tells the rows of its table apart."""

    searched: Literal["bank", "picture", "defect", "region"]
    owner_id: int
    subject: str
    table: str
    key: str
    vector_type: str
    metric: Metric
    ef_search: int
    k: int


class _Sample(NamedTuple):
    """Queries `(n, dim)` and the exact distances to their k nearest, `(n, k)`, ascending."""

    queries: Float32
    distances: NDArray[np.float64]
    num_vectors: int


def check_recall(
    database: Database,
    categories: Sequence[str] = (),
    *,
    sample: int = DEFAULT_SAMPLE,
    fix: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> list[IndexRecall]:
    """Compare each index with an exact search, over the banks in use and their extractors.

    Args:
        categories: those of their active detectors only; empty for all.
        sample: queries for each index.
        fix: store the ef_search that reaches `TARGET` where the one in force does not; for
            searches among images also where a smaller one does, but never less than the default
            unless there are enough vectors and queries to say so. Banks keep a higher one: they
            were calibrated on patches of parts left out of the index, which are harder to find.

    Raises:
        NotFound: for a category that is not there.
    """
    with database.connect() as connection:
        indexes = list(_indexes(driver(connection), categories))
    reports = []
    for done, index in enumerate(indexes):
        progress("recall", done, len(indexes))
        with database.connect() as connection:
            report = _check(driver(connection), index, sample)
        if report is not None:
            reports.append(_fix(database, index, report) if fix else report)
    progress("recall", len(indexes), len(indexes))
    return reports


def _indexes(raw: psycopg.Connection[Any], categories: Sequence[str]) -> Iterator[_Index]:
    known = {name for (name,) in raw.execute("SELECT name FROM pgdefect.category").fetchall()}
    if missing := sorted(set(categories) - known):
        raise NotFound(
            f"there is no category {', '.join(map(repr, missing))}; "
            f"known: {', '.join(sorted(known)) or 'none yet'}"
        )
    banks = raw.execute(
        "SELECT b.id, c.name, d.version, b.indexed_type, b.embedding_dim, b.metric, b.ef_search "
        "FROM pgdefect.memory_bank b JOIN pgdefect.detector d ON d.id = b.id "
        "JOIN pgdefect.category c ON c.id = d.category_id "
        "WHERE d.state = 'ready' AND (d.active OR %s) "
        "AND (cardinality(%s::text[]) = 0 OR c.name = ANY(%s)) ORDER BY c.name, d.version",
        [not categories, list(categories), list(categories)],
    ).fetchall()
    for bank_id, category, version, kind, dim, metric, ef_search in banks:
        yield _Index(
            "bank",
            bank_id,
            f"{category} version {version}",
            partition_name(bank_id),
            "position",
            f"{kind}({dim})",
            metric_named(metric),
            ef_search,
            1,
        )
    extractors = raw.execute(
        "SELECT id FROM pgdefect.extractor x WHERE cardinality(%s::text[]) = 0 OR EXISTS ("
        "SELECT FROM pgdefect.detector d JOIN pgdefect.category c ON c.id = d.category_id "
        "WHERE d.extractor_id = x.id AND d.active AND c.name = ANY(%s)) ORDER BY id",
        [list(categories), list(categories)],
    ).fetchall()
    searches: tuple[tuple[SearchBy, str], ...] = (
        ("picture", "image_id"),
        ("defect", "image_id"),
        ("region", "id"),
    )
    for (extractor_id,) in extractors:
        has_space = raw.execute(
            "SELECT FROM pgdefect.defect_space WHERE extractor_id = %s", [extractor_id]
        ).fetchone()
        for by, key in searches if has_space is not None else searches[:1]:
            row = raw.execute(
                "SELECT partition, vector_type, ef_search FROM pgdefect.searched_vectors(%s, %s)",
                [by, extractor_id],
            ).fetchone()
            assert row is not None
            table, vector_type, ef_search = row
            yield _Index(
                by,
                extractor_id,
                f"extractor {extractor_id}",
                table,
                key,
                vector_type,
                COSINE,
                ef_search,
                NEIGHBORS,
            )


def _check(raw: psycopg.Connection[Any], index: _Index, size: int) -> IndexRecall | None:
    """None for a table with too few vectors to have neighbors."""
    sample = _sample(raw, index, size)
    if sample is None:
        return None
    raw.execute("SET LOCAL enable_seqscan = off")
    raw.execute("SET LOCAL enable_sort = off")
    recalls = _recalls(raw, index, sample, index.ef_search)
    times = _times(raw, index, sample)
    needed = next(
        (
            ef
            for ef in EF_SEARCH_CHOICES
            # A candidate list shorter than the answer cuts it short.
            if ef >= index.k and float(_recalls(raw, index, sample, ef).mean()) >= TARGET
        ),
        None,
    )
    return IndexRecall(
        index=f"{index.table}_hnsw",
        searched=index.searched,
        subject=index.subject,
        num_vectors=sample.num_vectors,
        num_queries=len(sample.queries),
        k=sample.distances.shape[1],
        recall=float(recalls.mean()),
        worst_recall=float(recalls.min()),
        p50_ms=1e3 * float(np.percentile(times, 50)),
        p99_ms=1e3 * float(np.percentile(times, 99)),
        ef_search=index.ef_search,
        ef_needed=needed,
    )


def _sample(raw: psycopg.Connection[Any], index: _Index, size: int) -> _Sample | None:
    """The same queries at every check of the same rows: picked by the keys' hashes."""
    table = sql.Identifier("pgdefect", index.table)
    key = sql.Identifier(index.key)
    rows = raw.execute(
        sql.SQL(
            "SELECT {key}::bigint, embedding::vector::real[] FROM {table} "
            "ORDER BY hashint8extended({key}, 1) LIMIT %s"
        ).format(key=key, table=table),
        [size],
        binary=True,
    ).fetchall()
    if len(rows) < 2:
        return None
    keys = np.array([row[0] for row in rows], dtype=np.int64)
    stored = np.array([row[1] for row in rows], dtype=np.float32)
    everything = sql.SQL("SELECT {}::bigint, embedding::vector FROM {}").format(key, table)

    nearest = np.full((len(keys), NEIGHBORS), np.inf)
    neighbors = np.zeros((len(keys), NEIGHBORS, stored.shape[1]), dtype=np.float32)
    for block_keys, vectors in read_keyed_vectors(raw, everything, _BLOCK):
        distances = pairwise(index.metric, stored, vectors).astype(np.float64)
        distances[keys[:, None] == block_keys[None, :]] = np.inf
        some = np.argsort(distances, axis=1)[:, :NEIGHBORS]
        nearest = np.concatenate([nearest, np.take_along_axis(distances, some, 1)], axis=1)
        neighbors = np.concatenate([neighbors, vectors[some]], axis=1)
        order = np.argsort(nearest, axis=1)[:, :NEIGHBORS]
        nearest = np.take_along_axis(nearest, order, 1)
        neighbors = np.take_along_axis(neighbors, order[:, :, None], 1)
    chosen = np.random.default_rng(0).integers(np.isfinite(nearest).sum(axis=1))
    neighbor = neighbors[np.arange(len(keys)), chosen]
    seen = index.metric.seen
    queries = as_stored(2 * seen(stored) - seen(neighbor), "single")

    best = np.full((len(keys), index.k), np.inf)
    num_vectors = 0
    for _, vectors in read_keyed_vectors(raw, everything, _BLOCK):
        distances = pairwise(index.metric, queries, vectors).astype(np.float64)
        distances = np.partition(distances, min(index.k, len(vectors)) - 1, axis=1)[:, : index.k]
        best = np.sort(np.concatenate([best, distances], axis=1), axis=1)[:, : index.k]
        num_vectors += len(vectors)
    return _Sample(queries, best[:, : min(index.k, num_vectors)], num_vectors)


def _statement(index: _Index, k: int) -> str:
    """The distances of the k nearest to a query `q.v`."""
    distance = f"embedding::{index.vector_type} {index.metric.operator} q.v"
    return (
        f"SELECT ({distance})::double precision AS distance FROM pgdefect.{index.table} "
        f"ORDER BY {distance} LIMIT {k}"
    )


def _recalls(
    raw: psycopg.Connection[Any], index: _Index, sample: _Sample, ef: int
) -> NDArray[np.float64]:
    """The share of each query's k nearest that the index finds, `(n,)`."""
    raw.execute("SELECT set_config('hnsw.ef_search', %s, true)", [str(ef)])
    k = sample.distances.shape[1]
    # A tie, or a distance equal to rounding, is as good as the nearest.
    good_enough = sample.distances[:, -1] * (1 + 1e-4) + 1e-6
    rows = raw.execute(
        f"SELECT q.n, count(*) FROM (SELECT v::{index.vector_type} AS v, good_enough, n "
        "FROM unnest(%s, %s::double precision[]) WITH ORDINALITY u(v, good_enough, n) OFFSET 0) q "
        f"CROSS JOIN LATERAL ({_statement(index, k)}) p WHERE p.distance <= q.good_enough "
        "GROUP BY q.n",
        [VectorArray(sample.queries), good_enough.tolist()],
        binary=True,
    ).fetchall()
    found = np.zeros(len(sample.queries))
    for n, count in rows:
        found[n - 1] = count / k
    return found


def _times(raw: psycopg.Connection[Any], index: _Index, sample: _Sample) -> list[float]:
    """Seconds of each query alone, prepared, after a few that are not counted."""
    raw.execute("SELECT set_config('hnsw.ef_search', %s, true)", [str(index.ef_search)])
    statement = (
        f"SELECT p.distance FROM (SELECT %s::{index.vector_type} AS v OFFSET 0) q "
        f"CROSS JOIN LATERAL ({_statement(index, sample.distances.shape[1])}) p"
    )
    seconds = []
    for query in sample.queries:
        start = time.perf_counter()
        raw.execute(statement, [Vector(query)], binary=True, prepare=True).fetchall()
        seconds.append(time.perf_counter() - start)
    return seconds[min(5, len(seconds) - 1) :]


def _fix(database: Database, index: _Index, report: IndexRecall) -> IndexRecall:
    needed = report.ef_needed
    if needed is None:
        return report
    few = report.num_vectors < ENOUGH_VECTORS or report.num_queries < ENOUGH_QUERIES
    if few and index.searched != "bank":
        needed = max(needed, DEFAULT_EF_SEARCH)
    if needed == report.ef_search:
        return report
    if index.searched == "bank" and needed < report.ef_search:
        return report
    with database.connect() as connection:
        changed = _check(driver(connection), index._replace(ef_search=needed), report.num_queries)
    if changed is None:  # emptied in the meantime
        return report
    with database.begin() as connection:
        if index.searched == "bank":
            connection.execute(
                text("UPDATE pgdefect.memory_bank SET ef_search = :ef WHERE id = :id"),
                {"ef": needed, "id": index.owner_id},
            )
        else:
            connection.execute(
                text(
                    "INSERT INTO pgdefect.search_setting (extractor_id, searched, ef_search, "
                    "recall) VALUES (:id, :searched, :ef, :recall) "
                    "ON CONFLICT (extractor_id, searched) DO UPDATE SET "
                    "ef_search = excluded.ef_search, recall = excluded.recall, "
                    "checked_at = now()"
                ),
                {
                    "id": index.owner_id,
                    "searched": index.searched,
                    "ef": needed,
                    "recall": changed.recall,
                },
            )
    return replace(changed, ef_before=report.ef_search)
