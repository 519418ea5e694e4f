"""Defect embeddings: the space of an extractor, and what was found in inspected images."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from psycopg import sql
from sqlalchemy import Connection, select, text

from pgdefect.core.errors import NotFound
from pgdefect.core.types import (
    BankInfo,
    Defect,
    DefectSpace,
    DefectViewArtifact,
    Float32,
    Int32,
    Whitening,
)
from pgdefect.db.connection.binary_format import copy_rows, read_vectors
from pgdefect.db.connection.engine import Database, driver
from pgdefect.db.records.extractors import cached_graph, create_extractor_partition
from pgdefect.db.schema.models import DefectSpaceRow, MemoryBankRow

MAX_OF_TYPE = 50
"""Known defects of a type that stand for all of it where defects are compared with each other."""


def find_defect_space(
    database: Database, extractor_id: int, detector_id: int
) -> DefectSpace | None:
    """How a detector's defect embeddings are made: by its own statistics of normal images.

    One that was trained before detectors had their own, or imported, has those of the extractor's
    first category. None where there are none at all.
    """
    mine = MemoryBankRow.id == detector_id
    with database.session() as session:
        own = session.execute(
            select(MemoryBankRow.defect_parameters, MemoryBankRow.defect_settings).where(mine)
        ).one_or_none()
        if own is not None and own[0] is not None:
            return _space(own[0], own[1])
        row = session.get(DefectSpaceRow, extractor_id)
        return None if row is None else _space(row.parameters, row.settings["space"])


def known_defects(database: Database, category_id: int, extractor_id: int) -> int:
    """How many parts of a category have a defect of known type that can be searched for; simulated
    ones do not count.
    """
    with database.connect() as connection:
        return (
            connection.scalar(
                text(
                    "SELECT count(DISTINCT coalesce('g' || group_name, 'i' || id)) "
                    "FROM pgdefect.image i WHERE category_id = :category AND retired_at IS NULL "
                    "AND known_defect_type IS NOT NULL AND split <> 'simulated' AND EXISTS ("
                    "SELECT FROM pgdefect.defect_embedding e "
                    "WHERE e.extractor_id = :extractor AND e.image_id = i.id)"
                ),
                {"category": category_id, "extractor": extractor_id},
            )
            or 0
        )


def known_defect_embeddings(
    database: Database, category_id: int, extractor_id: int
) -> tuple[list[str], list[str], Float32]:
    """Type, part and embedding of known defects, the newest `MAX_OF_TYPE` of each type.

    Simulated ones do not count. The embeddings are `(n, embedding_dim)`.
    """
    with database.connect() as connection:
        rows = (
            driver(connection)
            .execute(
                "SELECT defect_type, part, embedding::real[] FROM ("
                "SELECT i.known_defect_type AS defect_type, "
                "       coalesce('g' || i.group_name, 'i' || i.id) AS part, e.embedding, "
                "       row_number() OVER (PARTITION BY i.known_defect_type ORDER BY i.id DESC) n "
                "FROM pgdefect.image i "
                "JOIN pgdefect.defect_embedding e ON e.image_id = i.id AND e.extractor_id = %s "
                "WHERE i.category_id = %s AND i.retired_at IS NULL AND i.split <> 'simulated' "
                "AND i.known_defect_type IS NOT NULL) known WHERE n <= %s",
                [extractor_id, category_id, MAX_OF_TYPE],
                binary=True,
            )
            .fetchall()
        )
    embeddings = np.array([row[2] for row in rows], dtype=np.float32)
    return [row[0] for row in rows], [row[1] for row in rows], embeddings


def load_defect_view(
    connection: Connection, extractor_id: int, cache_dir: Path
) -> DefectViewArtifact | None:
    """The second look of an extractor, from a local cache when that has it; None if it has none.

    Raises:
        DatabaseError: where the stored graph does not match its checksum.
    """
    mine = DefectSpaceRow.extractor_id == extractor_id
    row = connection.execute(
        select(DefectSpaceRow.onnx_sha256, DefectSpaceRow.settings).where(mine)
    ).one_or_none()
    if row is None or row[0] is None:
        return None
    sha256, settings = row
    onnx = cached_graph(
        cache_dir / "extractors",
        sha256,
        lambda: connection.scalar(select(DefectSpaceRow.onnx).where(mine)) or b"",
        f"the second look of extractor {extractor_id}",
    )
    view = settings["view"]
    return DefectViewArtifact(
        onnx,
        tuple(view["layers"]),
        view["side"],
        tuple(view["mean"]),
        tuple(view["std"]),
    )


def ensure_defect_space(
    database: Database,
    extractor_id: int,
    space: DefectSpace,
    view: DefectViewArtifact | None,
) -> None:
    """Store the second look of an extractor, with the partitions of its vectors, unless it has one.

    `space` gives their dimensions, and serves detectors that have none of their own.
    """
    known = select(DefectSpaceRow.extractor_id).where(DefectSpaceRow.extractor_id == extractor_id)
    with database.connect() as connection:
        if connection.scalar(known) is not None:
            return
    settings: dict[str, Any] = {"space": dict(space.settings)}
    if view is not None:
        settings["view"] = {
            "layers": view.layers,
            "side": view.side,
            "mean": view.mean,
            "std": view.std,
        }
    with database.begin() as connection:
        connection.execute(text("SET LOCAL lock_timeout = '30s'"))
        connection.execute(
            text("SELECT pg_advisory_xact_lock(hashtextextended('pgdefect defect space', 0))")
        )
        if connection.scalar(known) is not None:
            return
        dim = space.embedding_dim
        connection.execute(
            DefectSpaceRow.__table__.insert().values(  # type: ignore[attr-defined]
                extractor_id=extractor_id,
                embedding_dim=dim,
                parameters=space_parameters(space),
                onnx=view and view.onnx,
                onnx_sha256=view and view.onnx_sha256,
                settings=settings,
            )
        )
        create_extractor_partition(
            connection, "defect_embedding", extractor_id, dim, "extractor_id, image_id"
        )
        create_extractor_partition(
            connection, "defect_region", extractor_id, dim, "extractor_id, id"
        )


def space_parameters(space: DefectSpace) -> bytes:
    """A space's whitenings as a .npz file; its settings are stored beside it."""
    arrays: dict[str, Float32] = {}

    def add(name: str, whitening: Whitening) -> None:
        arrays[f"{name}.center"] = whitening.center
        arrays[f"{name}.components"] = whitening.components

    add("residual", space.residual)
    for number, one in enumerate(space.deep):
        add(f"deep.{number}", one)
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def _space(parameters: bytes, settings: Mapping[str, Any]) -> DefectSpace:
    arrays = np.load(io.BytesIO(parameters), allow_pickle=False)

    def get(name: str) -> Whitening:
        return Whitening(arrays[f"{name}.center"], arrays[f"{name}.components"])

    num_layers = sum(name.startswith("deep.") for name in arrays.files) // 2
    return DefectSpace(
        get("residual"),
        tuple(get(f"deep.{number}") for number in range(num_layers)),
        settings,
    )


def raw_bank_vectors(connection: Connection, bank: BankInfo, positions: Int32) -> Float32:
    """A bank's vectors before the transform, by position: `(len(positions), raw_dim)`.

    Raises:
        NotFound: where the bank was stored without them.
    """
    wanted, places = np.unique(positions, return_inverse=True)
    table = "memory_bank_patch" if bank.transform.kind == "none" else "memory_bank_raw"
    query = sql.SQL(
        "SELECT embedding::vector FROM pgdefect.{} "
        "WHERE bank_id = {} AND position = ANY ({}) ORDER BY position"
    ).format(
        sql.Identifier(table),
        sql.Literal(bank.id),
        sql.Literal(wanted.tolist()),
    )
    vectors = read_vectors(driver(connection), query)
    if len(vectors) != len(wanted):
        raise NotFound(
            f"memory bank {bank.id} was stored without the vectors that defect embeddings are made "
            "from; train the category again"
        )
    return vectors[places]


def has_raw_vectors(database: Database, bank: BankInfo) -> bool:
    """Whether defect embeddings can be made with this bank."""
    if bank.transform.kind == "none":
        return True
    with database.connect() as connection:
        return bool(
            connection.scalar(
                text("SELECT EXISTS (SELECT FROM pgdefect.memory_bank_raw WHERE bank_id = :bank)"),
                {"bank": bank.id},
            )
        )


def store_defects(
    connection: Connection,
    extractor_id: int,
    detector_id: int,
    image_ids: Sequence[int],
    defects: Sequence[Defect | None],
) -> None:
    """Replace what is stored of these images; None leaves an image without."""
    raw = driver(connection)
    for table in ("defect_embedding", "defect_region"):
        raw.execute(
            f"DELETE FROM pgdefect.{table} WHERE extractor_id = %s AND image_id = ANY(%s)",
            [extractor_id, list(image_ids)],
        )
    found = {
        image_id: defect
        for image_id, defect in zip(image_ids, defects, strict=True)
        if defect is not None
    }
    if not found:
        return

    def constant(value: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return np.full(count, value, dtype=np.int64)

    copy_rows(
        raw,
        sql.Identifier("pgdefect", "defect_embedding"),
        [
            ("extractor_id", constant(extractor_id, len(found))),
            ("image_id", np.array(list(found), dtype=np.int64)),
            ("detector_id", constant(detector_id, len(found))),
            (
                "embedding",
                np.stack([defect.embedding for defect in found.values()]).astype(np.float16),
            ),
        ],
    )
    regions = [
        (image_id, rank, region)
        for image_id, defect in found.items()
        for rank, region in enumerate(defect.regions, start=1)
    ]
    boxes = np.array([region.box for _, _, region in regions], dtype=np.int32)
    copy_rows(
        raw,
        sql.Identifier("pgdefect", "defect_region"),
        [
            ("extractor_id", constant(extractor_id, len(regions))),
            ("image_id", np.array([image_id for image_id, _, _ in regions], dtype=np.int64)),
            ("detector_id", constant(detector_id, len(regions))),
            ("rank", np.array([rank for _, rank, _ in regions], dtype=np.int16)),
            *[(name, boxes[:, n]) for n, name in enumerate(("x", "y", "width", "height"))],
            ("num_patches", np.array([r.num_patches for _, _, r in regions], dtype=np.int32)),
            *[
                (name, np.array([getattr(r, name) for _, _, r in regions], dtype=np.float32))
                for name in ("area", "peak_score", "mean_score")
            ],
            ("embedding", np.stack([r.embedding for _, _, r in regions]).astype(np.float16)),
        ],
    )


def without_defect_embedding(
    connection: Connection,
    category_id: int,
    detector_id: int,
    *,
    again: bool = False,
    any_detector: bool = False,
) -> list[int]:
    """Images that should have a defect embedding of this detector's and have none.

    They are known to be anomalous, or were judged so by their newest inspection; retired
    ones are left out. `again` lists those that have one, too; with `any_detector` one of another
    detector with the same extractor will do.
    """
    rows = driver(connection).execute(
        "SELECT i.id FROM pgdefect.image i LEFT JOIN LATERAL ("
        "  SELECT is_anomalous FROM pgdefect.inspection s WHERE s.image_id = i.id"
        "  ORDER BY s.inspected_at DESC, s.created_at DESC, s.id DESC LIMIT 1) s ON true "
        "WHERE i.category_id = %s AND i.retired_at IS NULL "
        "AND (s.is_anomalous OR i.known_label = 'anomalous') "
        "AND (%s OR NOT EXISTS (SELECT FROM pgdefect.defect_embedding e "
        "  JOIN pgdefect.detector d ON d.id = %s AND e.extractor_id = d.extractor_id "
        "  WHERE e.image_id = i.id AND (%s OR e.detector_id = d.id))) ORDER BY i.id",
        [category_id, again, detector_id, any_detector],
    )
    return [row[0] for row in rows.fetchall()]


def defect_embeddings(
    database: Database, extractor_id: int, image_ids: Sequence[int]
) -> dict[int, tuple[int, Float32]]:
    """The detector that made it, and the embedding `(embedding_dim,)`, by image id."""
    with database.connect() as connection:
        rows = driver(connection).execute(
            "SELECT image_id, detector_id, embedding::real[] FROM pgdefect.defect_embedding "
            "WHERE extractor_id = %s AND image_id = ANY(%s)",
            [extractor_id, list(image_ids)],
            binary=True,
        )
        return {row[0]: (row[1], np.array(row[2], dtype=np.float32)) for row in rows}


def region_embeddings(
    database: Database, extractor_id: int, image_ids: Sequence[int]
) -> dict[int, Float32]:
    """Embeddings of each image's regions, worst first, `(num_regions, embedding_dim)`."""
    with database.connect() as connection:
        rows = driver(connection).execute(
            "SELECT image_id, embedding::real[] FROM pgdefect.defect_region "
            "WHERE extractor_id = %s AND image_id = ANY(%s) ORDER BY image_id, rank",
            [extractor_id, list(image_ids)],
            binary=True,
        )
        found: dict[int, list[list[float]]] = {}
        for image_id, embedding in rows:
            found.setdefault(image_id, []).append(embedding)
    return {key: np.array(value, dtype=np.float32) for key, value in found.items()}
