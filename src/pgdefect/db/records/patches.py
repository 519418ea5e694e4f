"""Keeping all patch embeddings of images, so that any bank can judge them in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg.adapt import Dumper
from psycopg.pq import Format
from sqlalchemy import Connection, text

from pgdefect.core.distance import as_stored
from pgdefect.core.types import Float32
from pgdefect.db.connection.binary_format import vector_array_binary
from pgdefect.db.connection.engine import driver


def store_image_patches(
    connection: Connection,
    extractor_id: int,
    image_ids: Sequence[int],
    patches: Sequence[Float32],
) -> None:
    """Keep patch embeddings `(rows, cols, embedding_dim)`, one array an image, in half precision.

    What was kept of an image for this extractor before is replaced.

    Raises:
        ValueError: for values half precision cannot hold, or lists of unequal length.
    """
    if len(image_ids) != len(patches):
        raise ValueError(f"{len(image_ids)} images and patches of {len(patches)}")
    parameters = []
    for image_id, grid in zip(image_ids, patches, strict=True):
        rows, cols, dim = grid.shape
        half = as_stored(grid.reshape(-1, dim), "half").astype("float16")
        parameters.append((extractor_id, image_id, rows, cols, _HalfvecArray(half)))
    oid = connection.scalar(
        text(
            "SELECT t.oid FROM pg_type t JOIN pg_extension e ON e.extnamespace = t.typnamespace "
            "WHERE e.extname = 'vector' AND t.typname = 'halfvec'"
        )
    )
    with driver(connection).cursor() as cursor:
        _register(cursor, int(oid))
        cursor.executemany(
            "INSERT INTO pgdefect.image_patches "
            "(extractor_id, image_id, rows, cols, embeddings) VALUES (%s, %s, %s, %s, %b) "
            "ON CONFLICT (extractor_id, image_id) DO UPDATE "
            "SET rows = excluded.rows, cols = excluded.cols, embeddings = excluded.embeddings",
            parameters,
        )


class _HalfvecArray:
    """A float16 `(n, dim)` matrix to be sent as ``halfvec[]``."""

    def __init__(self, values: Any) -> None:
        self.values = values


def _register(cursor: psycopg.Cursor[Any], element_oid: int) -> None:
    class HalfvecArrayDumper(Dumper):
        # Without an oid the server takes the column's type.
        format = Format.BINARY

        def dump(self, obj: _HalfvecArray) -> bytes:
            return vector_array_binary(obj.values, element_oid)

    cursor.adapters.register_dumper(_HalfvecArray, HalfvecArrayDumper)
