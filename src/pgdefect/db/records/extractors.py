"""Extractors and the image embeddings they made."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from psycopg import sql
from sqlalchemy import Connection, func, select, text, update

from pgdefect.core.cached_files import write_cached
from pgdefect.core.errors import DatabaseError
from pgdefect.core.types import ExtractorArtifact, ExtractorSpec, Float32
from pgdefect.db.connection.binary_format import copy_rows
from pgdefect.db.connection.engine import Database, driver
from pgdefect.db.schema.hnsw import extractor_index
from pgdefect.db.schema.models import Extractor


def find_extractor(database: Database, fingerprint: str) -> int | None:
    """The id of the extractor with this fingerprint, if it is stored and its graph is whole."""
    with database.connect() as connection:
        return connection.scalar(
            select(Extractor.id).where(
                Extractor.fingerprint == fingerprint,
                func.encode(func.sha256(Extractor.onnx), "hex") == Extractor.onnx_sha256,
            )
        )


def store_extractor(database: Database, artifact: ExtractorArtifact) -> int:
    """Store an extractor and make the partition its image embeddings go to; returns its id.

    The partition's HNSW index is made while it is empty. A second call with the same
    fingerprint returns the first one's id; a graph that was damaged is replaced by this one.
    """
    spec = artifact.spec
    with database.begin() as connection:
        connection.execute(text("SET LOCAL lock_timeout = '30s'"))
        connection.execute(
            text("SELECT pg_advisory_xact_lock(hashtextextended('pgdefect extractor', 0))")
        )
        found = connection.scalar(
            select(Extractor.id).where(Extractor.fingerprint == spec.fingerprint)
        )
        if found is not None:
            connection.execute(
                update(Extractor)
                .where(
                    Extractor.id == found,
                    func.encode(func.sha256(Extractor.onnx), "hex") != Extractor.onnx_sha256,
                )
                .values(onnx=artifact.onnx, onnx_sha256=artifact.onnx_sha256)
            )
            return found
        row = connection.execute(
            Extractor.__table__.insert()  # type: ignore[attr-defined]
            .values(
                fingerprint=spec.fingerprint,
                backbone=spec.backbone,
                layers=list(spec.layers),
                preprocessing=dict(spec.preprocessing),
                weights_source=spec.weights_source,
                weights_sha256=spec.weights_sha256,
                embedding_dim=artifact.embedding_dim,
                rows=artifact.rows,
                cols=artifact.cols,
                onnx=artifact.onnx,
                onnx_sha256=artifact.onnx_sha256,
            )
            .returning(Extractor.id)
        ).one()
        extractor_id: int = row[0]
        create_extractor_partition(
            connection,
            "image_embedding",
            extractor_id,
            artifact.embedding_dim,
            "extractor_id, image_id",
        )
    return extractor_id


def create_extractor_partition(
    connection: Connection, parent: str, extractor_id: int, dim: int, primary_key: str
) -> None:
    """Make the partition that one extractor's vectors go to, with an HNSW index on it.

    Raises:
        UsageError: where pgvector cannot index vectors of `dim`.
    """
    name = f"{parent}_{extractor_id}"
    connection.execute(
        text(f"""
        CREATE TABLE pgdefect.{name} (
            LIKE pgdefect.{parent} INCLUDING DEFAULTS INCLUDING CONSTRAINTS,
            CONSTRAINT pk_{name} PRIMARY KEY ({primary_key}),
            CONSTRAINT ck_{name}_extractor CHECK (extractor_id = {extractor_id}),
            CONSTRAINT ck_{name}_dim CHECK (vector_dims(embedding) = {dim})
        )""")
    )
    connection.execute(text(extractor_index(dim).create(name)))
    connection.execute(
        text(
            f"ALTER TABLE pgdefect.{parent} ATTACH PARTITION pgdefect.{name} "
            f"FOR VALUES IN ({extractor_id})"
        )
    )


def load_extractor(database: Database, extractor_id: int, cache_dir: Path) -> ExtractorArtifact:
    """The extractor's graph, from a local cache when it holds the same bytes.

    Raises:
        DatabaseError: the stored graph does not match its checksum.
    """
    with database.session() as session:
        row = session.get_one(Extractor, extractor_id)
        onnx = cached_graph(
            cache_dir / "extractors",
            row.onnx_sha256,
            lambda: row.onnx,
            f"extractor {extractor_id}",
        )
        spec = ExtractorSpec(
            row.backbone,
            tuple(row.layers),
            row.preprocessing,
            row.weights_source,
            row.weights_sha256,
        )
        return ExtractorArtifact(spec, row.embedding_dim, row.rows, row.cols, onnx)


def cached_graph(folder: Path, sha256: str, fetch: Callable[[], bytes], subject: str) -> bytes:
    """A stored graph by its checksum: from the folder if it is there whole, else fetched.

    Raises:
        DatabaseError: what is fetched does not match the checksum.
    """
    cached = folder / f"{sha256}.onnx"
    onnx = cached.read_bytes() if cached.is_file() else b""
    if hashlib.sha256(onnx).hexdigest() != sha256:
        onnx = fetch()
        if hashlib.sha256(onnx).hexdigest() != sha256:
            raise DatabaseError(
                f"the graph of {subject} does not match its checksum; train the category again"
            )
        write_cached(cached, onnx)
    return onnx


def images_without_embedding(
    connection: Connection, extractor_id: int, image_ids: Sequence[int]
) -> list[int]:
    """Those of `image_ids`, in order, that this extractor has made no embedding of."""
    rows = connection.execute(
        text(
            "SELECT id FROM unnest(CAST(:ids AS bigint[])) WITH ORDINALITY u(id, n) "
            "WHERE NOT EXISTS (SELECT FROM pgdefect.image_embedding e "
            "WHERE e.extractor_id = :extractor AND e.image_id = u.id) ORDER BY n"
        ),
        {"ids": list(image_ids), "extractor": extractor_id},
    )
    return [row[0] for row in rows]


def store_image_embeddings(
    connection: Connection, extractor_id: int, image_ids: Sequence[int], embeddings: Float32
) -> None:
    """COPY one embedding `(n, dim)` per image; an image that has one already keeps it."""
    raw = driver(connection)
    raw.execute(
        "CREATE TEMP TABLE IF NOT EXISTS new_image_embedding "
        "(extractor_id bigint, image_id bigint, embedding halfvec) ON COMMIT DELETE ROWS"
    )
    copy_rows(
        raw,
        sql.Identifier("new_image_embedding"),
        [
            ("extractor_id", np.full(len(image_ids), extractor_id, dtype=np.int64)),
            ("image_id", np.asarray(image_ids, dtype=np.int64)),
            ("embedding", embeddings.astype(np.float16)),
        ],
    )
    raw.execute(
        # Two who store the same wait for each other, each in the same order.
        "INSERT INTO pgdefect.image_embedding SELECT * FROM new_image_embedding "
        "ORDER BY image_id ON CONFLICT DO NOTHING"
    )
    raw.execute("DELETE FROM new_image_embedding")
