"""PatchCore detectors and their memory banks: stored whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from psycopg import sql
from sqlalchemy import Connection, insert, null, text

from pgdefect.core.detector_kinds import PATCHCORE
from pgdefect.core.distance import index_expression, indexed_type, nearest_vectors, row_distances
from pgdefect.core.errors import NotFound
from pgdefect.core.progress import Progress
from pgdefect.core.types import (
    UNKNOWN_IMAGE,
    DefectSpace,
    Float32,
    MemoryBank,
    Threshold,
)
from pgdefect.db.connection.binary_format import copy_rows
from pgdefect.db.connection.engine import Database, VectorArray, driver
from pgdefect.db.connection.row_locks import keep_images
from pgdefect.db.records.defects import space_parameters
from pgdefect.db.records.detectors import add_detector, reserve_detector
from pgdefect.db.records.thresholds import store_first_threshold
from pgdefect.db.schema.bank_tables import EF_SEARCH_CHOICES, partition_name
from pgdefect.db.schema.hnsw import bank_index, build_index
from pgdefect.db.schema.models import MemoryBankRow
from pgdefect.db.search.queries import every_other

RECALL_TARGET, FAST_RECALL_TARGET = 0.992, 0.955
"""Of patches of normal images whose parts are left out of the index; for 0.99 and 0.95 of all
patches of new images, normal and anomalous."""
LEAST_EF_SEARCH, LEAST_EF_SEARCH_FAST = 30, 6
"""An anomalous patch far from everything is harder to place than any normal one, which no sample
of normal images shows. On solar cells, half of the images anomalous, ef_search 4 and 8 reach
the targets on normal images, and 6 and 25 what they are for (25 only just)."""
MIN_GAIN = 0.0005
GIVE_UP_AT = 4
"""Times the last ef_search that gained anything."""


@dataclass(frozen=True)
class Calibration:
    """Queries to choose ef_search by, and their exact nearest distances.

    Attributes:
        queries: `(n, embedding_dim)` transformed and rounded as stored.
        distances: `(n,)`.
        grids: of each image or part of one, whose patches lie in the queries row by row, one image
            after the other; none where the queries are no images.
        left_out: which of the bank's vectors are of the same parts as the queries,
            `(num_vectors,)`: the distances are to the others, and the index has none of them until
            ef_search is chosen.
    """

    queries: Float32
    distances: Float32
    grids: Sequence[tuple[int, int]] = ()
    left_out: NDArray[np.bool_] | None = None


class _Chosen(NamedTuple):
    """recall: that of ef_search, of queries alone or of whole images, whichever is less."""

    ef_search: int
    recall: float
    ef_search_fast: int


def store_detector(
    database: Database,
    *,
    category_id: int,
    extractor_id: int,
    bank: MemoryBank,
    threshold: Threshold,
    calibration: Calibration,
    settings: Mapping[str, Any],
    metrics: Mapping[str, Any],
    library_versions: Mapping[str, str],
    holdout_scores: Mapping[int, float] = MappingProxyType({}),
    defect_space: DefectSpace | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> int:
    """Store a trained detector and make it the category's active one; returns its id.

    One transaction: rows by binary COPY into a table of their own, primary key, HNSW index, the
    choice of ef_search, the rows that the calibration left out, statistics, and at the end the
    attachment to the parent. No other session sees any of it before the commit; after a failure
    nothing remains. Until then it blocks only deletion of a training image or of the category.

    Args:
        holdout_scores: raw score by image id of the normal training images the threshold is from,
            each compared with vectors of other parts alone.
        defect_space: the statistics that this detector's defect embeddings are made with.
    """

    def work(connection: Connection) -> int:
        detector_id = reserve_detector(connection, category_id)
        known = bank.image_ids[bank.image_ids != UNKNOWN_IMAGE]
        # The lock keeps the images until the bank can be seen, and with it what forbids deletion.
        keep_images(connection, {*known.tolist(), *holdout_scores})
        left_out = calibration.left_out
        if left_out is None:
            left_out = np.zeros(len(bank.embeddings), dtype=np.bool_)
        indexed, rest = np.flatnonzero(~left_out), np.flatnonzero(left_out)
        connection.execute(
            text(
                f"CREATE TABLE pgdefect.{partition_name(detector_id)} "
                "(LIKE pgdefect.memory_bank_patch)"
            )
        )
        _load(connection, detector_id, bank, indexed, 0, progress)
        _index(connection, detector_id, bank, len(indexed), progress)
        chosen = _calibrate(connection, detector_id, bank, calibration)
        if len(rest):
            _load(connection, detector_id, bank, rest, len(indexed), progress)
            connection.execute(text(f"ANALYZE pgdefect.{partition_name(detector_id)}"))
        if bank.raw_embeddings is not None:
            _load_raw(connection, detector_id, bank.raw_embeddings)
        add_detector(
            connection,
            detector_id,
            category_id=category_id,
            extractor_id=extractor_id,
            kind=PATCHCORE,
            threshold=threshold,
            settings=settings,
            metrics=metrics,
            library_versions=library_versions,
        )
        store_first_threshold(connection, detector_id, threshold, holdout_scores)
        _insert_bank(connection, detector_id, bank, chosen, calibration, defect_space)
        if bank.raw_embeddings is not None:
            _attach(connection, "memory_bank_raw", detector_id)
        _attach(connection, "memory_bank_patch", detector_id)
        return detector_id

    return database.transact(work)


@dataclass(frozen=True)
class BankFigures:
    """What is stored of a bank and its threshold, but the vectors."""

    num_images: int
    num_vectors: int
    embedding_dim: int
    covering_radius: float
    threshold: float
    held_out_images: int
    rule: dict[str, Any]


def bank_figures(database: Database, detector_id: int) -> BankFigures:
    """Figures of a PatchCore detector. Raises NotFound where it is gone."""
    with database.connect() as connection:
        row = connection.execute(
            text("""
            SELECT b.num_images, b.num_vectors, b.embedding_dim, b.covering_radius, d.threshold,
                   (SELECT count(*) FROM pgdefect.holdout_score h WHERE h.detector_id = d.id),
                   (SELECT t.rule FROM pgdefect.detector_threshold t
                    WHERE t.detector_id = d.id ORDER BY t.id DESC LIMIT 1)
            FROM pgdefect.memory_bank b JOIN pgdefect.detector d ON d.id = b.id
            WHERE b.id = :id"""),
            {"id": detector_id},
        ).one_or_none()
    if row is None:
        raise NotFound(f"detector {detector_id} was deleted just now; train the category again")
    return BankFigures(*row)


def find_run(database: Database, category_id: int, settings: Mapping[str, Any]) -> int | None:
    """The active detector of a training that recorded these settings, its ``run`` among them."""
    with database.connect() as connection:
        found: int | None = connection.scalar(
            text(
                "SELECT d.id FROM pgdefect.detector d JOIN pgdefect.memory_bank b ON b.id = d.id "
                "WHERE d.category_id = :category AND d.active AND d.settings = (:settings)::jsonb"
            ),
            {"category": category_id, "settings": json.dumps(settings)},
        )
    return found


def _attach(connection: Connection, parent: str, bank_id: int) -> None:
    connection.execute(
        text(
            f"ALTER TABLE pgdefect.{parent} ATTACH PARTITION "
            f"pgdefect.{partition_name(bank_id, parent)} FOR VALUES IN ({bank_id})"
        )
    )


def _load_raw(connection: Connection, bank_id: int, vectors: NDArray[np.float16]) -> None:
    table = partition_name(bank_id, "memory_bank_raw")
    connection.execute(text(f"CREATE TABLE pgdefect.{table} (LIKE pgdefect.memory_bank_raw)"))
    copy_rows(
        driver(connection),
        sql.Identifier("pgdefect", table),
        [
            ("bank_id", np.full(len(vectors), bank_id, dtype=np.int64)),
            ("position", np.arange(len(vectors), dtype=np.int32)),
            ("embedding", vectors),
        ],
    )
    connection.execute(
        text(f"""
        ALTER TABLE pgdefect.{table}
            ADD CONSTRAINT pk_{table} PRIMARY KEY (bank_id, position),
            ADD CONSTRAINT ck_{table}_bank CHECK (bank_id = {bank_id})""")
    )
    connection.execute(text(f"ANALYZE pgdefect.{table}"))


def _load(
    connection: Connection,
    bank_id: int,
    bank: MemoryBank,
    positions: NDArray[np.intp],
    before: int,
    progress: Progress,
) -> None:
    """Copy the vectors of some positions into the bank's table and what indexes it has, where
    there are others `before`.
    """
    count = len(bank.embeddings)
    copy_rows(
        driver(connection),
        sql.Identifier("pgdefect", partition_name(bank_id)),
        [
            ("bank_id", np.full(count, bank_id, dtype=np.int64)),
            ("position", np.arange(count, dtype=np.int32)),
            ("image_id", bank.image_ids.astype(np.int64)),
            ("row", bank.rows.astype(np.int16)),
            ("col", bank.cols.astype(np.int16)),
            ("embedding", bank.embeddings),
        ],
        rows=positions,
        progress=lambda done, _: progress("load", before + done, count),
    )


def _index(
    connection: Connection, bank_id: int, bank: MemoryBank, num_vectors: int, progress: Progress
) -> None:
    table = partition_name(bank_id)
    dim = bank.embeddings.shape[1]
    kind = indexed_type(bank.precision, dim)
    progress("index", 0, 1)
    connection.execute(
        text(f"""
        ALTER TABLE pgdefect.{table}
            ADD CONSTRAINT pk_{table} PRIMARY KEY (bank_id, position),
            ADD CONSTRAINT ck_{table}_bank CHECK (bank_id = {bank_id}),
            ADD CONSTRAINT ck_{table}_dim CHECK (vector_dims(embedding) = {dim})""")
    )
    build_index(
        connection,
        f"pgdefect.{table}",
        bank_index(kind, dim, bank.metric).create(table),
        num_vectors,
    )
    connection.execute(text(f"ANALYZE pgdefect.{table}"))
    progress("index", 1, 1)


def _calibrate(
    connection: Connection, bank_id: int, bank: MemoryBank, calibration: Calibration
) -> _Chosen:
    """Choose ef_search, and the faster one, by recall@1 on the calibration's queries.

    The faster one serves images only, every other patch of which is asked for; ef_search also
    single vectors.
    """
    dim = bank.embeddings.shape[1]
    kind = indexed_type(bank.precision, dim)
    distance = f"{index_expression(kind, dim)} {bank.metric.operator} q.v"
    # The limit is written out: a plan for any limit might sort the bank and not ask the index.
    statement = f"""
        SELECT q.n::integer - 1, p.position
        FROM (SELECT n, v::{kind}({dim}) AS v FROM unnest(%s) WITH ORDINALITY u(v, n) OFFSET 0) q
        CROSS JOIN LATERAL (
            SELECT position
            FROM pgdefect.{partition_name(bank_id)} ORDER BY {distance} LIMIT """
    raw = driver(connection)
    # A tie, or a distance equal to rounding, is as good as the nearest.
    good_enough = calibration.distances * (1 + 1e-4) + 1e-6

    def near(queries: Float32, ef: int, count: int) -> NDArray[np.int32]:
        """Rows of a query's number and a position, `(n, 2)`."""
        raw.execute("SELECT set_config('hnsw.ef_search', %s, true)", [str(ef)])
        rows = raw.execute(f"{statement}{count}) p", [VectorArray(queries)], binary=True).fetchall()
        return np.array(rows, dtype=np.int32).reshape(-1, 2)

    def recall_alone(ef: int) -> float:
        queries = slice(None, None, 2 if calibration.grids else 1)
        alone = calibration.queries[queries]
        numbers, positions = near(alone, ef, 1).T
        distances = row_distances(alone[numbers], bank.embeddings[positions], bank.metric)
        return float((distances <= good_enough[queries][numbers]).sum() / len(alone))

    def recall_of_images(ef: int) -> float:
        found = 0
        ends = np.cumsum([rows * cols for rows, cols in calibration.grids])
        for end, (rows, cols) in zip(ends.tolist(), calibration.grids, strict=True):
            image = slice(end - rows * cols, end)
            asked = calibration.queries[image][every_other((rows, cols))]
            candidates = bank.embeddings[np.unique(near(asked, ef, ef)[:, 1])]
            _, distances = nearest_vectors(calibration.queries[image], candidates, bank.metric)
            found += int((distances <= good_enough[image]).sum())
        return found / len(calibration.queries)

    raw.execute("SET LOCAL enable_seqscan = off")
    of_images = recall_of_images if calibration.grids else recall_alone
    fast, _ = _least_ef(of_images, FAST_RECALL_TARGET, LEAST_EF_SEARCH_FAST)
    ef_search, reached = _least_ef(recall_alone, RECALL_TARGET, LEAST_EF_SEARCH)
    if calibration.grids:
        ef_search, together = _least_ef(recall_of_images, RECALL_TARGET, ef_search)
        reached = min(reached, together)
    raw.execute("SET LOCAL enable_seqscan = on")
    return _Chosen(ef_search, reached, min(fast, ef_search))


def _least_ef(recall: Callable[[int], float], target: float, least: int) -> tuple[int, float]:
    """The smallest ef_search from `least` on that reaches the target, and its recall.

    Vectors that no path of the graph leads to are not found by searching longer: where more
    gains nothing, it is the last that gained something.
    """
    ef, reached = least, recall(least)
    too_small = least - 1
    for candidate in EF_SEARCH_CHOICES:
        if reached >= target or (reached > 0.9 and candidate > GIVE_UP_AT * ef):
            break
        if candidate > ef and (now := recall(candidate)) - reached >= MIN_GAIN:
            too_small, ef, reached = ef, candidate, now
    while reached >= target and ef - too_small > max(1, ef // 20):
        # Between two of the choices.
        middle = (too_small + ef) // 2
        if (now := recall(middle)) >= target:
            ef, reached = middle, now
        else:
            too_small = middle
    return ef, reached


def _insert_bank(
    connection: Connection,
    bank_id: int,
    bank: MemoryBank,
    chosen: _Chosen,
    calibration: Calibration,
    defect_space: DefectSpace | None,
) -> None:
    transform = bank.transform
    connection.execute(
        insert(MemoryBankRow).values(
            id=bank_id,
            num_images=bank.num_images,
            num_vectors=len(bank.embeddings),
            embedding_dim=bank.embeddings.shape[1],
            precision=bank.precision,
            indexed_type=indexed_type(bank.precision, bank.embeddings.shape[1]),
            metric=bank.metric.name,
            operator=bank.metric.operator,
            transform=transform.kind,
            transform_mean=None if transform.mean is None else transform.mean.tolist(),
            transform_components=(
                None if transform.components is None else transform.components.tolist()
            ),
            transform_constant=transform.constant,
            coreset_ratio=bank.coreset_ratio,
            covering_radius=bank.covering_radius,
            num_neighbors=bank.num_neighbors,
            worst_share=bank.worst_share,
            ef_search=chosen.ef_search,
            ef_search_recall=chosen.recall,
            ef_search_fast=chosen.ef_search_fast,
            patch_score_std=float(calibration.distances.std(dtype=np.float64)),
            defect_parameters=defect_space and space_parameters(defect_space),
            defect_settings=null() if defect_space is None else dict(defect_space.settings),
        )
    )
