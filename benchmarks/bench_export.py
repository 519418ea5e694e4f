"""Storing a memory bank, against row-by-row INSERT of vectors written as text."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from psycopg import sql

from benchmarks.common import Context, Report, Row, extractor_for, prepared, server, timed
from pgdefect.core.types import Float32, MemoryBank


def measure(context: Context) -> Report:
    count = 2_000 if context.quick else 20_000
    bank, artifact = _bank(context, count)
    vectors = bank.embeddings
    report = Report(
        "export", f"{count:,} vectors of {vectors.shape[1]} dimensions, {context.images.name}"
    )
    whole, indexed, rows_alone, peers = [], [], [], []
    with server() as database:
        for n in range(context.repeat):
            rows_alone.append(_rows_alone(database, bank))
            until_indexed, until_done = _store(database, bank, artifact, f"bench{n}")
            indexed.append(until_indexed)
            whole.append(until_done)
            context.say(f"{count:,} INSERTs")
            with database.autocommit() as raw:
                peers.append(timed(lambda raw=raw: _insert_rows(raw, vectors))[0])
                raw.execute("DROP TABLE patch")
    peer = float(np.median(peers))
    against = (
        f"CREATE TABLE patch (…, embedding vector({vectors.shape[1]})); CREATE INDEX ON patch "
        "USING hnsw (embedding vector_cosine_ops); INSERT INTO patch VALUES (…, '[0.1,…]') for "
        f"each row, one COMMIT: {count / peer:,.0f} rows a second"
    )
    num_bytes = count * (2 + 5 * 4 + 8 + 4 + 8 + 2 + 2 + 4 + 4 * vectors.shape[1])
    # Each new vector is compared with the neighbors of at least ef_construction others.
    compared = count * 64 * 16
    build = 2 * compared * vectors.shape[1] / context.rates.flops
    copying = num_bytes / context.rates.bytes_copied
    report.rows = [
        Row(
            "rows alone, binary COPY",
            against,
            float(np.median(rows_alone)),
            peer,
            50.0,
            f"{num_bytes / 1e6:.1f} MB copied once at {context.rates.bytes_copied / 1e9:.1f} GB/s",
            copying,
        ),
        Row(
            "rows, primary key and HNSW index",
            against,
            float(np.median(indexed)),
            peer,
            6.0,
            f"{compared / 1e6:.0f} million distances (ef_construction 64 x m 16 a row) at "
            f"{context.rates.flops / 1e9:.0f} GFLOP/s",
            build + copying,
        ),
        Row(
            "the whole of it: calibration and attachment too",
            against,
            float(np.median(whole)),
            peer,
        ),
    ]
    report.facts = {
        "seconds": {"rows": rows_alone, "indexed": indexed, "whole": whole, "peer": peers}
    }
    return report


def _bank(context: Context, count: int) -> tuple[MemoryBank, Any]:
    """Real patches, transformed and rounded as a training stores them."""
    from pgdefect.core.distance import COSINE, as_stored
    from pgdefect.core.types import UNKNOWN_IMAGE
    from pgdefect.vision.patchcore.transform import apply_transform, fit_transform

    _, extractor = extractor_for("efficientnet_lite0", context.folder)
    paths = context.images.normal_training[: -(-2 * count // 1024)]
    patches = np.concatenate(
        [
            extractor(prepared(paths[start : start + 8], extractor.preprocessing))
            for start in range(0, len(paths), 8)
        ]
    ).reshape(-1, extractor.artifact.embedding_dim)
    some = np.random.default_rng(0).permutation(len(patches))[:count]
    transform = fit_transform(patches)
    bank = MemoryBank(
        embeddings=as_stored(apply_transform(transform, patches[some]), "half"),
        image_ids=np.full(count, UNKNOWN_IMAGE, dtype=np.int64),
        rows=(some % 1024 // 32).astype(np.int16),
        cols=(some % 32).astype(np.int16),
        num_images=len(paths),
        transform=transform,
        metric=COSINE,
        precision="half",
        coreset_ratio=0.5,
        covering_radius=0.0,
        num_neighbors=1,
    )
    return bank, extractor.artifact


def _store(database: Any, bank: MemoryBank, artifact: Any, category: str) -> tuple[float, float]:
    """Seconds until the index stood, and until all was committed."""
    from pgdefect.core.distance import nearest_vectors
    from pgdefect.core.types import Threshold
    from pgdefect.db.records import catalog
    from pgdefect.db.records.extractors import store_extractor
    from pgdefect.db.records.patchcore import Calibration, store_detector

    queries = bank.embeddings[:2048]
    _, distances = nearest_vectors(queries, bank.embeddings, bank.metric)
    with database.begin() as connection:
        category_id = catalog.ensure_category(connection, category)
    extractor_id = store_extractor(database, artifact)
    reached: dict[tuple[str, int], float] = {}
    start = time.perf_counter()
    store_detector(
        database,
        category_id=category_id,
        extractor_id=extractor_id,
        bank=bank,
        threshold=Threshold(1.0, 0.5, {}),
        calibration=Calibration(queries, distances),
        settings={},
        metrics={},
        library_versions={},
        progress=lambda stage, done, total: reached.update({(stage, done): time.perf_counter()}),
    )
    return reached["index", 1] - start, time.perf_counter() - start


def _rows_alone(database: Any, bank: MemoryBank) -> float:
    from pgdefect.db.connection.binary_format import copy_rows
    from pgdefect.db.connection.engine import driver

    count = len(bank.embeddings)
    with database.begin() as connection:
        raw = driver(connection)
        raw.execute("CREATE TABLE rows_alone (LIKE pgdefect.memory_bank_patch)")
        columns = [
            ("bank_id", np.full(count, 1, dtype=np.int64)),
            ("position", np.arange(count, dtype=np.int32)),
            ("image_id", bank.image_ids),
            ("row", bank.rows),
            ("col", bank.cols),
            ("embedding", bank.embeddings),
        ]
        seconds, _ = timed(lambda: copy_rows(raw, sql.Identifier("rows_alone"), columns))
        raw.execute("DROP TABLE rows_alone")
    return seconds


def _insert_rows(raw: Any, vectors: Float32) -> None:
    raw.execute(
        "CREATE TABLE patch (id bigint, image_id bigint, row_ integer, col_ integer, "
        f"embedding vector({vectors.shape[1]}))"
    )
    raw.execute("BEGIN")
    raw.execute("CREATE INDEX ON patch USING hnsw (embedding vector_cosine_ops)")
    for n, vector in enumerate(vectors.tolist()):
        text = "[" + ",".join(map(str, vector)) + "]"
        raw.execute(
            "INSERT INTO patch VALUES (%s, %s, %s, %s, %s::vector)", [n, 0, n // 32, n % 32, text]
        )
    raw.execute("COMMIT")
