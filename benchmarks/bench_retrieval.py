"""A million stored vectors: top-10 in SQL beside FAISS in memory and qdrant-client's local mode.

Stored as image embeddings are patch embeddings of real photographs, queries are patches of
photographs that are not stored. Both peers are asked for the same ten; FAISS gets the same graph
(links, candidates at building) and the shortest list of candidates that reaches the same recall.
qdrant-client's local mode compares with every vector, so it holds fewer. The peers are not among
pgdefect's dependencies: pip install faiss-cpu qdrant-client.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg import sql

from benchmarks.common import GRID, SIZE, Context, Report, Row, extractor_for, prepared, server

K = 10
M, EF_CONSTRUCTION = 16, 64  # pgvector's defaults
RECALL = 0.99
CHOICES = (40, 60, 80, 100, 120, 160, 200, 240, 320, 400, 640)
P50_TARGET, P99_TARGET = 5e-3, 25e-3
LOADING_TARGET = 0.8
QDRANT_ROWS = 50_000
SHARES = {"half": 0.5, "one in twenty": 0.05, "one in two hundred": 0.005}
Vectors = NDArray[Any]


@dataclass(frozen=True)
class Questions:
    """Queries `(n, dim)` and the distances to their K nearest `(n, K)`."""

    queries: NDArray[np.float32]
    distances: NDArray[np.float64]

    def recall(self, found: NDArray[np.float64]) -> float:
        """Of distances `(n, K)`; a tie, or one equal to rounding, counts as found."""
        return float((found <= self.distances[:, -1:] * (1 + 1e-4) + 1e-6).mean())


def measure(context: Context) -> Report:
    count, num_queries = (20_000, 50) if context.quick else (1_000_000, 400)
    stored, held_out = _patches(context, count)
    rng = np.random.default_rng(0)
    some = rng.choice(len(held_out), num_queries, replace=False)
    context.say(f"exact answers to {num_queries} questions")
    questions = _questions(stored, held_out[np.sort(some)].astype(np.float32))
    report = Report(
        "retrieval",
        f"{count:,} patch embeddings of {stored.shape[1]} dimensions, {context.images.name}",
    )
    with server() as database:
        extractor = _add_images(database, context, count, stored.shape[1])
        _load(report, context, database, extractor, stored)
        found = _search(report, context, database, extractor, questions)
        _filter(report, context, database, extractor, questions)
    peer = _faiss(report, context, stored, questions)
    if peer is not None:
        for what, seconds in found.items():
            report.rows.append(
                Row(
                    f"top-{K} in SQL, {what}",
                    peer.what,
                    seconds,
                    peer.seconds,
                    None,
                    f"{peer.compared:,.0f} vectors read, as FAISS counts them at this recall",
                    peer.compared * 4 * stored.shape[1] / context.rates.bytes_read,
                )
            )
    _qdrant(report, context, stored, questions, found["one statement"])
    return report


def _patches(context: Context, count: int) -> tuple[Vectors, Vectors]:
    """The first `count` patch embeddings, half precision, and those of photographs behind them."""
    _, extractor = extractor_for("efficientnet_lite0", context.folder)
    paths = sorted({*context.images.paths("train"), *context.images.paths("test")})
    paths = [paths[n] for n in np.random.default_rng(0).permutation(len(paths))]
    each = GRID[0] * GRID[1]
    paths = paths[: -(-count // each) + (4 if context.quick else 300)]
    if (len(paths) - 1) * each < count:
        raise SystemExit(f"{len(paths)} photographs do not give {count:,} patches and a question")
    patches = np.empty((len(paths) * each, extractor.artifact.embedding_dim), dtype=np.float16)
    context.say(f"patch embeddings of {len(paths)} photographs, {SIZE[0]}x{SIZE[1]}")
    for start in range(0, len(paths), 8):
        batch = extractor(prepared(paths[start : start + 8], extractor.preprocessing))
        batch = batch.reshape(-1, batch.shape[-1])
        patches[start * each : start * each + len(batch)] = batch
    return patches[:count], patches[-(-count // each) * each :]


def _unit(vectors: Vectors) -> NDArray[np.float32]:
    values = vectors.astype(np.float32)
    return np.asarray(values / np.linalg.norm(values, axis=1, keepdims=True))


def _questions(stored: Vectors, queries: NDArray[np.float32]) -> Questions:
    best = np.full((len(queries), K), np.inf)
    unit = _unit(queries)
    for start in range(0, len(stored), 50_000):
        distances = 1.0 - unit @ _unit(stored[start : start + 50_000]).T
        distances = np.partition(distances, K, axis=1)[:, :K]
        best = np.sort(np.concatenate([best, distances], axis=1), axis=1)[:, :K]
    return Questions(queries, best)


def _add_images(database: Any, context: Context, count: int, dim: int) -> int:
    """An extractor and a row of ``image`` for each vector, with defect types of known shares."""
    from pgdefect.core.types import ExtractorArtifact, ExtractorSpec
    from pgdefect.db.records.extractors import store_extractor

    context.say(f"{count:,} rows of image")
    spec = ExtractorSpec("bench", ("layer",), {"image_size": list(SIZE)}, "nowhere", "0" * 64)
    extractor = store_extractor(database, ExtractorArtifact(spec, dim, *GRID, b"none"))
    with database.autocommit() as raw:
        raw.execute("INSERT INTO pgdefect.category (name) VALUES ('bench')")
        raw.execute("INSERT INTO pgdefect.image_root (path) VALUES ('/nowhere')")
        raw.execute(
            "INSERT INTO pgdefect.image (category_id, root_id, path, sha256, num_bytes, height, "
            "width, split, label, defect_type) SELECT 1, 1, n || '.png', "
            "encode(sha256(n::text::bytea), 'hex'), 1, 64, 64, 'test', 'anomalous', CASE "
            "WHEN u < 0.5 THEN 'half' WHEN u < 0.55 THEN 'one in twenty' "
            "WHEN u < 0.555 THEN 'one in two hundred' WHEN n = 1 THEN 'one' END "
            "FROM (SELECT n, CASE n WHEN 1 THEN 1 ELSE (hashint4(n) & 65535) / 65536.0 END AS u "
            "FROM generate_series(1, %s) n) s",
            [count],
        )
        raw.execute("VACUUM (ANALYZE) pgdefect.image")
    return extractor


def _load(report: Report, context: Context, database: Any, extractor: int, stored: Vectors) -> None:
    """Load them resumably and by one plain COPY, without the index both times; then build it."""
    from pgdefect.db.connection.binary_format import copy_rows
    from pgdefect.db.records.bulk_load import load_image_embeddings

    table = f"image_embedding_{extractor}"
    ids = np.arange(1, len(stored) + 1, dtype=np.int64)
    context.say("plain COPY")
    with database.autocommit() as raw:
        raw.execute(f"DROP INDEX pgdefect.{table}_hnsw")
        raw.execute("CHECKPOINT")
        start = time.perf_counter()
        columns = [
            ("extractor_id", np.full(len(ids), extractor, dtype=np.int64)),
            ("image_id", ids),
            ("embedding", stored),
        ]
        copy_rows(raw, sql.Identifier("pgdefect", table), columns)
        plain = time.perf_counter() - start
        raw.execute(f"TRUNCATE pgdefect.{table}")
        raw.execute("CHECKPOINT")
    context.say("the load, and the HNSW index")
    stamps: dict[str, float] = {}

    def progress(stage: str, done: int, total: int) -> None:
        stamps[f"{stage} {done == total}"] = time.perf_counter()

    start = time.perf_counter()
    load_image_embeddings(database, extractor, ids, stored, progress=progress)
    loaded = stamps["load True"] - start
    build = stamps["index True"] - stamps["index False"]
    num_bytes = len(stored) * (2 + 4 + 8 + 4 + 8 + 4 + 4 + 2 * stored.shape[1])
    report.rows.append(
        Row(
            "loading, resumable",
            "one binary COPY into the same table, in one transaction: "
            f"{len(stored) / plain:,.0f} rows a second",
            loaded,
            plain,
            LOADING_TARGET,
            f"{num_bytes / 1e6:.0f} MB copied once",
            num_bytes / context.rates.bytes_copied,
            ["no index meanwhile, foreign keys checked, both times; committed in chunks"],
        )
    )
    with database.autocommit() as raw:
        raw.execute(f"VACUUM (ANALYZE) pgdefect.{table}")
        sizes = raw.execute(
            "SELECT pg_relation_size(%s), pg_relation_size(%s)",
            [f"pgdefect.{table}_hnsw", f"pgdefect.{table}"],
        ).fetchone()
        settings = {
            name: raw.execute(f"SHOW {name}").fetchone()[0]
            for name in (
                *("maintenance_work_mem", "max_parallel_maintenance_workers", "shared_buffers"),
            )
        }
    report.facts |= {"index_seconds": build, "index_bytes": sizes[0], "table_bytes": sizes[1]}
    report.facts |= settings
    report.notes.append(
        f"HNSW index (m {M}, ef_construction {EF_CONSTRUCTION}) built in {build:.0f} s, "
        f"{sizes[0] / 1e6:,.0f} MB over a table of {sizes[1] / 1e6:,.0f} MB; "
        + ", ".join(f"{name} {value}" for name, value in settings.items())
    )


def _search(
    report: Report, context: Context, database: Any, extractor: int, questions: Questions
) -> dict[str, float]:
    """Median seconds of the plain statement and of `pgdefect.nearest`, at the recall wanted."""
    from pgdefect.db.connection.engine import Vector

    dim = questions.queries.shape[1]
    order = f"embedding::vector({dim}) <=> %s::vector({dim})"
    statements = {
        "one statement": (
            f"SELECT ({order})::double precision FROM pgdefect.image_embedding "
            f"WHERE extractor_id = {extractor} ORDER BY {order} LIMIT {K}",
            2,
        ),
        "pgdefect.nearest": (
            f"SELECT distance FROM pgdefect.nearest('picture', {extractor}, %s, {K})",
            1,
        ),
    }

    def ask(raw: Any, name: str) -> tuple[NDArray[np.float64], list[float]]:
        statement, uses = statements[name]
        answers, seconds = [], []
        for query in questions.queries:
            start = time.perf_counter()
            rows = raw.execute(statement, [Vector(query)] * uses, binary=True, prepare=True)
            answers.append([row[0] for row in rows.fetchall()])
            seconds.append(time.perf_counter() - start)
        return np.array(answers), seconds

    setting = "INSERT INTO pgdefect.search_setting VALUES (%s, 'picture', 40, 0)"
    with database.autocommit() as raw:
        raw.execute(setting, [extractor])
        cold = ask(raw, "one statement")[1][:20]
        context.say("the ef_search that is enough")
        for ef in CHOICES:
            raw.execute(f"SET hnsw.ef_search = {ef}")
            reached = questions.recall(ask(raw, "one statement")[0])
            if reached >= RECALL:
                break
        raw.execute("UPDATE pgdefect.search_setting SET ef_search = %s", [ef])
        medians = {}
        for name in statements:
            ask(raw, name)
            found, seconds = ask(raw, name)
            p50, p99 = np.percentile(seconds, [50, 99])
            recall = questions.recall(found)
            medians[name] = float(p50)
            report.facts[name] = {"ef_search": ef, "recall": recall, "p50": p50, "p99": p99}
            what = f"top-{K}, {name}: recall {recall:.4f} at ef_search {ef}"
            report.check(f"{what}, of {RECALL}", recall >= RECALL)
            report.check(f"{what}: p50 {p50 * 1e3:.2f} ms, of 5", p50 < P50_TARGET)
            report.check(f"{what}: p99 {p99 * 1e3:.2f} ms, of 25", p99 < P99_TARGET)
    report.notes.append(
        f"warm: {len(questions.queries)} questions asked once before they are timed, one at a "
        f"time, over a socket. The first 20 after the index was built took a median of "
        f"{np.median(cold) * 1e3:.1f} ms. pgdefect.nearest chooses the way, joins the images, "
        "leaves out retired ones, and folds near-duplicates."
    )
    return medians


def _filter(
    report: Report, context: Context, database: Any, extractor: int, questions: Questions
) -> None:
    """Under filters: the way chosen, how long it takes, and whether it finds what a scan does."""
    from pgdefect.db.search.search import SearchFilter, explain_nearest, nearest

    for name in (*SHARES, "one"):
        context.say(f"filter: {name}")
        where = SearchFilter(defect_type=name)
        plan = explain_nearest(database, "picture", extractor, K, where)
        hits, wanted, complete, seconds = 0, 0, True, []
        for query in questions.queries[:20]:
            start = time.perf_counter()
            found = nearest(database, "picture", extractor, query, K, where)
            seconds.append(time.perf_counter() - start)
            true = nearest(database, "picture", extractor, query, K, where, exact=True)
            hits += len({n.image.id for n in found} & {n.image.id for n in true})
            wanted += len(true)
            complete &= len(found) == len(true)
        report.check(f"filter {name}: as many rows as a scan gives", complete)
        report.notes.append(
            f"filter {name}: {plan.way}, {plan.scanned:,} rows pass; median "
            f"{np.median(seconds) * 1e3:.1f} ms, {hits / wanted:.3f} of what a scan finds"
        )


@dataclass(frozen=True)
class Peer:
    what: str
    seconds: float
    compared: float


def _faiss(report: Report, context: Context, stored: Vectors, questions: Questions) -> Peer | None:
    """FAISS's HNSW over the same vectors, in float32 and in memory, at the same recall."""
    if find_spec("faiss") is None:
        report.notes.append("FAISS is not installed: pip install faiss-cpu")
        return None
    import faiss

    context.say("FAISS's HNSW")
    index = faiss.IndexHNSWFlat(stored.shape[1], M, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = EF_CONSTRUCTION
    start = time.perf_counter()
    for first in range(0, len(stored), 50_000):
        index.add(_unit(stored[first : first + 50_000]))
    build = time.perf_counter() - start
    queries = _unit(questions.queries)
    faiss.omp_set_num_threads(1)
    for ef in CHOICES:
        index.hnsw.efSearch = ef
        faiss.cvar.hnsw_stats.reset()
        similarities, _ = index.search(queries, K)
        compared = faiss.cvar.hnsw_stats.ndis / len(queries)
        recall = questions.recall(1.0 - similarities.astype(np.float64))
        if recall >= RECALL:
            break
    seconds = _each(queries, lambda query: index.search(query[None], K))
    p50, p99 = np.percentile(seconds, [50, 99])
    report.facts["faiss"] = {
        "version": faiss.__version__,
        "build_seconds": build,
        "ef_search": ef,
        "recall": recall,
        "p50": p50,
        "p99": p99,
        "compared": compared,
    }
    report.notes.append(
        f"FAISS {faiss.__version__} built in {build:.0f} s; efSearch {ef}, recall {recall:.4f}, "
        f"p50 {p50 * 1e3:.2f} ms, p99 {p99 * 1e3:.2f} ms, nothing kept on disk"
    )
    return Peer(
        f"faiss.IndexHNSWFlat({stored.shape[1]}, {M}) in memory, one query at a time on one core, "
        f"efSearch {ef}, recall {recall:.4f}",
        float(p50),
        compared,
    )


def _qdrant(
    report: Report, context: Context, stored: Vectors, questions: Questions, ours: float
) -> None:
    if find_spec("qdrant_client") is None:
        report.notes.append("qdrant-client is not installed: pip install qdrant-client")
        return
    from qdrant_client import QdrantClient, models

    few = stored[:QDRANT_ROWS]
    context.say(f"qdrant-client's local mode, {len(few):,} vectors")
    client = QdrantClient(":memory:")
    parameters = models.VectorParams(size=stored.shape[1], distance=models.Distance.COSINE)
    client.create_collection("bench", vectors_config=parameters)
    for first in range(0, len(few), 5_000):
        part = few[first : first + 5_000].astype(np.float32)
        client.upload_collection("bench", vectors=part, ids=range(first, first + len(part)))
    seconds = _each(
        questions.queries[:50],
        lambda query: client.query_points("bench", query=query.tolist(), limit=K),
    )
    report.rows.append(
        Row(
            f"top-{K} in SQL of {len(stored):,}",
            f"QdrantClient(':memory:').query_points over {len(few):,} of the vectors: it compares "
            "with all, and takes as much longer for more",
            ours,
            float(np.median(seconds)),
        )
    )


def _each(queries: Sequence[Any] | NDArray[Any], ask: Callable[[Any], Any]) -> list[float]:
    for query in queries[:5]:
        ask(query)
    seconds = []
    for query in queries:
        start = time.perf_counter()
        ask(query)
        seconds.append(time.perf_counter() - start)
    return seconds
