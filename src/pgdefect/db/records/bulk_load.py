"""Millions of image embeddings made elsewhere: loaded in chunks, so that a load can be resumed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg import sql
from psycopg.errors import UniqueViolation
from sqlalchemy import Connection, text

from pgdefect.core.errors import NotFound, UsageError
from pgdefect.core.progress import Progress
from pgdefect.db.connection.binary_format import copy_rows
from pgdefect.db.connection.engine import Database, driver
from pgdefect.db.records.extractors import (
    images_without_embedding,
    store_image_embeddings,
)
from pgdefect.db.schema.hnsw import extractor_index
from pgdefect.db.schema.indexes import concurrently, run_beside
from pgdefect.db.schema.partitions import loading

__all__ = ["load_image_embeddings"]

CHUNK_ROWS = 50_000
DEFERRED_FROM = 20_000
"""New rows from which on it is quicker to build the index at the end than to add each to it."""


def load_image_embeddings(
    database: Database,
    extractor_id: int,
    image_ids: NDArray[np.int64],
    embeddings: NDArray[Any],
    *,
    progress: Progress = lambda stage, done, total: None,
    chunk_rows: int = CHUNK_ROWS,
) -> int:
    """Store embeddings `(n, dim)` of images `(n,)`; returns how many were not there yet.

    embeddings may be memory-mapped, float16 or float32; they are kept in half precision. Each
    chunk is committed by itself: an interrupted load resumes where it was when it is
    called again with the same rows, and none is stored twice. Where most rows are new the HNSW
    index is dropped first and built at the end; until then searches use a sequential scan and find
    the same.

    Raises:
        NotFound: there is no such extractor;
        UsageError: a vector has another dimension, is zero or not finite;
        Conflict: an image is not stored;
        Busy: another load for this extractor is running.
    """
    if len(image_ids) != len(embeddings) or embeddings.ndim != 2:
        raise UsageError(
            f"{len(image_ids):,} images and embeddings of shape {embeddings.shape} do not match; "
            "pass one vector for each image"
        )
    if len(np.unique(image_ids)) != len(image_ids):
        raise UsageError("an image is named twice; pass one vector for each image")
    with database.connect() as connection:
        dim = connection.scalar(
            text("SELECT embedding_dim FROM pgdefect.extractor WHERE id = :id"),
            {"id": extractor_id},
        )
        if dim is None:
            raise NotFound(f"there is no extractor {extractor_id}")
        if embeddings.shape[1] != dim:
            raise UsageError(
                f"extractor {extractor_id} makes embeddings of {dim} dimensions, and these have "
                f"{embeddings.shape[1]}"
            )
    stored = 0
    with database.lock(loading(extractor_id)):
        missing = _missing(database, extractor_id, image_ids, chunk_rows)
        _defer_index(database, extractor_id, int(missing.sum()))
        for start in range(0, len(image_ids), chunk_rows):
            progress("load", start, len(image_ids))
            rows = start + np.flatnonzero(missing[start : start + chunk_rows])
            if len(rows):
                _load_chunk(database, extractor_id, image_ids, embeddings, rows)
                stored += len(rows)
        progress("load", len(image_ids), len(image_ids))
        _build_index(database, extractor_id, dim, progress)
    return stored


def _missing(
    database: Database, extractor_id: int, image_ids: NDArray[np.int64], chunk_rows: int
) -> NDArray[np.bool_]:
    """Which images have no embedding yet, `(n,)`: where a load resumes."""
    found = []
    with database.connect() as connection:
        any_stored = "SELECT EXISTS (SELECT FROM pgdefect.image_embedding WHERE extractor_id = :id)"
        if not connection.scalar(text(any_stored), {"id": extractor_id}):
            return np.ones(len(image_ids), dtype=bool)
        for start in range(0, len(image_ids), chunk_rows):
            chunk = image_ids[start : start + chunk_rows]
            without = images_without_embedding(connection, extractor_id, chunk.tolist())
            found.append(np.isin(chunk, without))
    return np.concatenate(found) if found else np.zeros(0, dtype=bool)


def _load_chunk(
    database: Database,
    extractor_id: int,
    image_ids: NDArray[np.int64],
    embeddings: NDArray[Any],
    rows: NDArray[np.int64],
) -> None:
    with np.errstate(over="ignore"):
        half = np.ascontiguousarray(embeddings[rows], dtype=np.float16)
    bits = half.view(np.uint16)
    usable = ((bits & 0x7C00) != 0x7C00).all(axis=1) & ((bits & 0x7FFF) != 0).any(axis=1)
    if not usable.all():
        raise UsageError(
            f"the vector of row {rows[~usable][0]:,} is zero, not finite, or too large for half "
            "precision; leave it out. Rows before its chunk are stored"
        )
    ids = image_ids[rows].astype(np.int64)
    # In the order in which others store theirs, too.
    order = np.argsort(ids)
    ids, half = ids[order], half[order]

    def work(connection: Connection) -> None:
        raw = driver(connection)
        try:
            with raw.transaction():
                copy_rows(
                    raw,
                    sql.Identifier("pgdefect", f"image_embedding_{extractor_id}"),
                    [
                        ("extractor_id", np.full(len(ids), extractor_id, dtype=np.int64)),
                        ("image_id", ids),
                        ("embedding", half),
                    ],
                )
        except UniqueViolation:
            # An inspection has stored one of them just now.
            store_image_embeddings(connection, extractor_id, ids.tolist(), half.astype(np.float32))

    database.transact(work)


def _defer_index(database: Database, extractor_id: int, new: int) -> None:
    with database.begin() as connection:
        present = connection.scalar(
            text("SELECT count(*) FROM pgdefect.image_embedding WHERE extractor_id = :id"),
            {"id": extractor_id},
        )
        if new >= max(DEFERRED_FROM, present or 0):
            connection.execute(text("SET LOCAL lock_timeout = '30s'"))
            connection.execute(
                text(f"DROP INDEX IF EXISTS pgdefect.image_embedding_{extractor_id}_hnsw")
            )


def _build_index(database: Database, extractor_id: int, dim: int, progress: Progress) -> None:
    name = f"image_embedding_{extractor_id}"
    with database.connect() as connection:
        valid = connection.scalar(
            text("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:index)"),
            {"index": f"pgdefect.{name}_hnsw"},
        )
    if valid:
        return
    progress("index", 0, 1)
    # Left by a load that ended while it built.
    leftover = [] if valid is None else [f"DROP INDEX CONCURRENTLY pgdefect.{name}_hnsw"]
    build = [*leftover, concurrently(extractor_index(dim).create(name)), f"ANALYZE pgdefect.{name}"]
    run_beside(database, build, "the load")
    progress("index", 1, 1)
