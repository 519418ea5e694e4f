"""The hot queries, one Python function per SQL function of ``sql/internal``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg import sql
from psycopg.rows import TupleRow
from sqlalchemy import Connection

from pgdefect.core.distance import as_stored
from pgdefect.core.errors import NotFound, UnknownImage
from pgdefect.core.types import (
    BankInfo,
    Float32,
    Int32,
    PatchNeighbor,
    StoredImage,
)
from pgdefect.db.connection.binary_format import integers_sent, read_vectors, vectors_sent
from pgdefect.db.connection.engine import Database, VectorArray, driver

STORED_IMAGE = """
    i.id, c.name, r.path || '/' || i.path, i.path, i.split, i.known_label, i.known_defect_type,
    i.group_name, i.mask_path, i.sha256, i.height, i.width, c.gray_scale
    FROM pgdefect.image i
    JOIN pgdefect.category c ON c.id = i.category_id
    JOIN pgdefect.image_root r ON r.id = i.root_id"""
"""A StoredImage's columns and where they are from; label and defect type are the known ones."""

_SENT_TO_PROVE = 64
"""Patches that are sent to have the worst ones proven: few, for arrays take time to send."""

_IN_A_ROW = 1024
"""Positions of a bank whose vectors come in one row of a result. A connection keeps a buffer as
large as the largest row it received: all in one row were 2 MiB, in each session for its life."""


def score_patches(
    connection: Connection,
    bank: BankInfo,
    patches: Float32,
    *,
    ef: int | None = None,
    exact: bool = False,
) -> tuple[Int32, Float32]:
    """Nearest bank vector of each transformed patch `(n, embedding_dim)`.

    Positions `(n,)` int32 and distances `(n,)` float32 in the bank's metric; from the HNSW
    index they are upper bounds.
    """
    statement = (
        "SELECT patch, nearest_position, distance FROM pgdefect.score_patches(%s, %s, %s, %s)"
    )
    parameters = [bank.id, VectorArray(as_stored(patches, bank.precision)), ef, exact]
    # A committing bank's row can become visible before its partition; retry once.
    for _ in range(2):
        rows = driver(connection).execute(statement, parameters, binary=True).fetchall()
        if rows:
            break
    if len(rows) != len(patches):
        raise _no_vectors(bank)
    result = np.array(rows, dtype=np.float64)
    result = result[result[:, 0].argsort()]
    return result[:, 1].astype(np.int32), result[:, 2].astype(np.float32)


def _no_vectors(bank: BankInfo) -> NotFound:
    return NotFound(f"memory bank {bank.id} has no vectors; it was deleted in the meantime")


def every_other(grid: tuple[int, int]) -> NDArray[np.int64]:
    """The patches of a grid, numbered row by row, that are black on a chessboard."""
    rows, cols = np.indices(grid)
    return np.flatnonzero((rows + cols) % 2 == 0)


def near_vectors(
    connection: Connection, bank: BankInfo, patches: Float32, *, ef: int | None = None
) -> tuple[Int32, Float32]:
    """Bank vectors near any of the transformed patches `(n, embedding_dim)`, each once.

    Positions `(m,)`, ascending, and vectors `(m, embedding_dim)`: the `ef` nearest of each
    patch, as the HNSW index finds them.
    """
    statement = (
        "SELECT string_agg(int4send(near_position), '' ORDER BY near_position), "
        "string_agg(vector_send(embedding), '' ORDER BY near_position) "
        f"FROM pgdefect.near_vectors(%s, %s, %s) GROUP BY near_position / {_IN_A_ROW} "
        f"ORDER BY near_position / {_IN_A_ROW}"
    )
    parameters = [bank.id, VectorArray(as_stored(patches, bank.precision)), ef]
    # A committing bank's row can become visible before its partition; retry once.
    for _ in range(2):
        rows = driver(connection).execute(statement, parameters, binary=True).fetchall()
        if rows:
            positions, vectors = (b"".join(column) for column in zip(*rows, strict=True))
            return integers_sent(positions), vectors_sent(vectors)
    raise _no_vectors(bank)


def prove_worst(
    connection: Connection,
    bank: BankInfo,
    patches: Float32,
    positions: Int32,
    distances: Float32,
    *,
    num_worst: int = 1,
) -> tuple[Int32, Float32]:
    """What is nearest to each of an image's patches, with the largest distances made exact.

    Args:
        positions, distances: `(n,)`, as found.
        num_worst: how many, of which the image's score is the mean.
    """
    positions, distances = positions.copy(), distances.copy()
    statement = "SELECT positions, distances FROM pgdefect.prove_worst(%s, %s, %s, %s, %s)"
    num_sent = max(_SENT_TO_PROVE, 2 * num_worst)
    while True:
        order = np.argsort(-distances, kind="stable")
        sent, rest = order[:num_sent], order[num_sent:]
        parameters = [
            bank.id,
            VectorArray(as_stored(patches[sent], bank.precision)),
            positions[sent].tolist(),
            distances[sent].tolist(),
            num_worst,
        ]
        row = driver(connection).execute(statement, parameters, binary=True).fetchone()
        assert row is not None
        positions[sent], distances[sent] = row
        if not len(rest) or np.sort(distances[sent])[-num_worst] >= distances[rest[0]]:
            return positions, distances
        num_sent *= 4


def bank_vectors(connection: Connection, bank: BankInfo, positions: Int32) -> Float32:
    """Vectors of a bank by position, `(len(positions), embedding_dim)`."""
    rows = driver(connection).execute(
        "SELECT p.embedding::real[] FROM unnest(%s::integer[]) WITH ORDINALITY u(position, n) "
        "JOIN pgdefect.memory_bank_patch p ON p.bank_id = %s AND p.position = u.position "
        "ORDER BY u.n",
        [[int(p) for p in positions], bank.id],
        binary=True,
    )
    return np.array([row[0] for row in rows.fetchall()], dtype=np.float32)


def support_positions(connection: Connection, bank: BankInfo, position: int, count: int) -> Int32:
    """The `count` bank vectors nearest to the one at `position`, itself first."""
    rows = driver(connection).execute(
        "SELECT n.nearest_position FROM pgdefect.memory_bank_patch p, "
        "pgdefect.nearest_bank_vectors(p.bank_id, p.embedding, %s, exact => true) n "
        "WHERE p.bank_id = %s AND p.position = %s "
        "ORDER BY n.nearest_position <> p.position, n.distance, n.nearest_position",
        [count, bank.id, position],
    )
    return np.array([row[0] for row in rows.fetchall()], dtype=np.int32)


def find_image(database: Database, word: str, category: str | None = None) -> StoredImage:
    """The stored image named by an id, the end of a path, or the start of a sha256.

    Args:
        category: whose is meant where several are called so.

    Raises:
        UnknownImage: none is.
        Conflict: several are; the message lists them.
    """
    with database.connect() as connection:
        try:
            image_id = (
                driver(connection)
                .execute("SELECT defect.find_image(%s::text, %s)", [word, category])
                .fetchone()
            )
        except psycopg.errors.Error as error:
            if error.sqlstate == "PD404":
                raise UnknownImage(
                    f"{error.diag.message_primary}. {error.diag.message_hint}"
                ) from error
            raise
        assert image_id is not None
        return stored_images(connection, [image_id[0]])[image_id[0]]


def stored_images(connection: Connection, image_ids: list[int]) -> dict[int, StoredImage]:
    """Rows of ``image`` by id."""
    rows = driver(connection).execute(
        f"SELECT {STORED_IMAGE} WHERE i.id = ANY(%s)",
        [image_ids],
    )
    return {row[0]: stored_image(row) for row in rows.fetchall()}


def images_of(
    database: Database,
    category: str,
    *,
    split: str | None = None,
    label: str | None = None,
) -> list[StoredImage]:
    """A category's images that are not retired, by path.

    Those with simulated defects are given only where `split` asks for them.
    """
    with database.connect() as connection:
        rows = driver(connection).execute(
            f"SELECT {STORED_IMAGE} WHERE c.name = %s AND i.retired_at IS NULL "
            "AND (i.split = %s OR (%s::text IS NULL AND i.split <> 'simulated')) "
            "AND (%s::text IS NULL OR i.known_label = %s) ORDER BY r.path, i.path, i.id",
            [category, split, split, label, label],
        )
        return [stored_image(row) for row in rows.fetchall()]


def image_embeddings_of(
    database: Database, extractor_id: int, image_ids: Sequence[int]
) -> dict[int, Float32]:
    """The image embeddings `(embedding_dim,)` an extractor made of stored images, by id."""
    with database.connect() as connection:
        rows = driver(connection).execute(
            "SELECT image_id, embedding::real[] FROM pgdefect.image_embedding "
            "WHERE extractor_id = %s AND image_id = ANY(%s)",
            [extractor_id, list(image_ids)],
            binary=True,
        )
        return {row[0]: np.array(row[1], dtype=np.float32) for row in rows}


def similar_patches(database: Database, bank_id: int, position: int, k: int) -> list[PatchNeighbor]:
    """The k vectors of a bank nearest to one of its own, itself first.

    Raises:
        NotFound: for a bank or position there is not.
    """
    with database.connect() as connection:
        rows = driver(connection).execute(
            'SELECT rank, nearest_position, distance, similarity, image_id, path, "row", col '
            "FROM defect.similar_patches(%s, %s, %s)",
            [bank_id, position, k],
        )
        return [PatchNeighbor(*row) for row in rows.fetchall()]


def stored_image(row: TupleRow) -> StoredImage:
    """The columns of `STORED_IMAGE`."""
    return StoredImage(*row)


@dataclass(frozen=True)
class NormalMatch:
    """An anomalous patch and the normal patch nearest to it; boxes are ``x,y,w,h`` in pixels.

    Where the normal patch lies is None in an imported bank.
    """

    row: int
    col: int
    score: float
    box: str
    normal_image_id: int | None
    normal_row: int | None
    normal_col: int | None
    normal_box: str | None
    bank_position: int
    normal_path: str | None


def nearest_normal(database: Database, image_id: int) -> NormalMatch:
    """The worst patch of an image's newest inspection by PatchCore. NotFound without one."""
    with database.connect() as connection:
        row = (
            driver(connection)
            .execute(
                "SELECT n.* FROM (SELECT id FROM pgdefect.inspection WHERE image_id = %s "
                "AND nearest_positions IS NOT NULL "
                "ORDER BY inspected_at DESC, created_at DESC, id DESC LIMIT 1) s, "
                "defect.nearest_normal(s.id) n LIMIT 1",
                [image_id],
            )
            .fetchone()
        )
    if row is None:
        raise NotFound(f"image {image_id} has not been inspected; use pgdefect inspect")
    return NormalMatch(*row)


def images_by_sha256(
    connection: Connection, category: str, digests: list[str]
) -> dict[str, list[StoredImage]]:
    """A category's images with the given content, retired ones last, oldest first."""
    rows = driver(connection).execute(
        f"SELECT {STORED_IMAGE} WHERE c.name = %s AND i.sha256 = ANY(%s) "
        "ORDER BY i.retired_at IS NOT NULL, i.id",
        [category, digests],
    )
    found: dict[str, list[StoredImage]] = {}
    for row in rows.fetchall():
        image = stored_image(row)
        found.setdefault(image.sha256, []).append(image)
    return found


def categories_by_sha256(connection: Connection, digest: str) -> tuple[list[str], list[str]]:
    """Names of the categories that hold an image of this content, and of all there are."""
    rows = driver(connection).execute(
        "SELECT c.name, EXISTS (SELECT FROM pgdefect.image i "
        "WHERE i.category_id = c.id AND i.sha256 = %s) "
        "FROM pgdefect.category c WHERE c.retired_at IS NULL ORDER BY c.name",
        [digest],
    )
    known = rows.fetchall()
    return [name for name, holds in known if holds], [name for name, _ in known]


def read_bank(database: Database, bank: BankInfo) -> Float32:
    """All vectors of a bank by position, `(num_vectors, embedding_dim)`."""
    query = sql.SQL(
        "SELECT embedding FROM pgdefect.memory_bank_patch WHERE bank_id = {} ORDER BY position"
    ).format(sql.Literal(bank.id))
    with database.connect() as connection:
        vectors = read_vectors(driver(connection), query)
        return vectors if len(vectors) else read_vectors(driver(connection), query)


def bank_cells(
    database: Database, bank: BankInfo
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Image id, row and column each vector of a bank came from, by position, `(num_vectors,)`."""
    with database.connect() as connection:
        rows = driver(connection).execute(
            'SELECT image_id, "row", col FROM pgdefect.memory_bank_patch WHERE bank_id = %s '
            "ORDER BY position",
            [bank.id],
            binary=True,
        )
        cells = np.array(rows.fetchall(), dtype=np.int64).reshape(-1, 3)
    return cells[:, 0], cells[:, 1], cells[:, 2]
