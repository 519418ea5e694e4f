"""What an analyst waits for in psql, over 100,000 inspections, beside the same work elsewhere.

Rows are made up: one category, photographs of different sizes, maps of 32 x 32 cells, patches
that resemble their neighbors. The peers do the same work in the same run: SciPy for statistics, the
plain tables for views, NumPy for a judgement from kept patches. Times in SQL are those of a session
that has asked before; each includes sending the answer to the client.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import Context, Report, Row, median_alternating, server

INSPECTIONS = 100_000
BANK, RAW_DIM, SIDE, KEPT = 20_000, 152, 32, 8
TARGETS = {
    "rate_interval": 5e-3,
    "fisher_p": 50e-3,
    "anomaly_map": 20e-3,
    "inspections": 2.0,
    "inspect": 60e-3,
}
"""Seconds that each may take."""
NUM_TIMES = 15


@dataclass(frozen=True)
class Scene:
    """What stands in the database: inspections' ids, images with kept patches, the bank."""

    database: Any
    inspections: NDArray[np.int64]
    kept: list[int]
    bank_id: int
    bank: Any
    patches: NDArray[np.float32]
    """`(KEPT, SIDE, SIDE, RAW_DIM)`."""


def measure(context: Context) -> Report:
    count, vectors = (2_000, 2_000) if context.quick else (INSPECTIONS, BANK)
    report = Report("sql", f"{count:,} inspections, a bank of {vectors:,} vectors")
    with server() as database:
        context.say("making the database")
        scene = build(database, count, vectors)
        with database.autocommit() as connection:
            for add in (_statistics, _map, _views, _judgement):
                context.say(add.__name__.strip("_"))
                add(report, context, connection, scene)
    for row in report.rows:
        limit = TARGETS.get(str(row.notes[0]) if row.notes else "")
        if limit is not None:
            report.check(
                f"{row.what}: at most {limit:g} s, took {row.seconds:.3g} s", row.seconds <= limit
            )
    return report


def build(database: Any, count: int, vectors: int) -> Scene:
    """Images, a detector, inspections, kept patches; nothing of it lies on a disk."""
    from sqlalchemy import text

    from pgdefect.core.distance import COSINE, as_stored, nearest_vectors
    from pgdefect.core.types import ExtractorArtifact, ExtractorSpec, MemoryBank, Threshold
    from pgdefect.db.records import catalog
    from pgdefect.db.records.extractors import store_extractor
    from pgdefect.db.records.patchcore import Calibration, store_detector
    from pgdefect.db.records.patches import store_image_patches
    from pgdefect.vision.images.preprocess import Preprocessing
    from pgdefect.vision.patchcore.transform import apply_transform, fit_transform

    rng = np.random.default_rng(0)
    preprocessing = Preprocessing(image_size=(SIDE * 8, SIDE * 8), resize="keep")
    spec = ExtractorSpec("none", ("layer",), preprocessing.to_dict(), "nowhere", "0" * 64)
    extractor = store_extractor(database, ExtractorArtifact(spec, RAW_DIM, SIDE, SIDE, b"none"))
    with database.begin() as connection:
        category = catalog.ensure_category(connection, "line")
        root = catalog.ensure_root(connection, "/nowhere/line")
        # Square: the grid of a photograph is that of its map.
        connection.execute(
            text(
                "INSERT INTO pgdefect.image (category_id, root_id, path, sha256, num_bytes, "
                "height, width, split, label, attributes) "
                "SELECT :category, :root, n || '.png', encode(sha256(n::text::bytea), 'hex'), 1, "
                "900 + n % 7, 900 + n % 7, CASE WHEN n <= 200 THEN 'train' ELSE 'production' END, "
                "CASE WHEN n <= 200 THEN 'normal' END, jsonb_build_object('shift', n % 3) "
                "FROM generate_series(1, :count) n"
            ),
            {"category": category, "root": root, "count": count},
        )
        ids = list(connection.scalars(text("SELECT id FROM pgdefect.image ORDER BY id")))
    scales = (1.0 + np.arange(RAW_DIM) / 8.0) ** -0.5

    def drawn(number: int) -> NDArray[np.float32]:
        """Patches of images, `(number, SIDE, SIDE, RAW_DIM)`: neighbors resemble each other."""
        from scipy.ndimage import gaussian_filter

        noise = rng.standard_normal((number, SIDE, SIDE, RAW_DIM))
        smooth = gaussian_filter(noise, (0, 1.5, 1.5, 0), mode="wrap") + 0.05 * noise
        return np.float32(smooth / smooth.std() * scales)

    grids = max(2, vectors // 500)
    raw = drawn(grids).reshape(-1, RAW_DIM)
    raw = raw[rng.permutation(len(raw))[:vectors]]
    transform = fit_transform(raw, pca_dim=64)
    stored = as_stored(apply_transform(transform, raw), "half")
    place = np.arange(vectors)
    bank = MemoryBank(
        embeddings=stored,
        image_ids=np.asarray(ids[:200], dtype=np.int64)[place % 200],
        rows=(place % SIDE).astype(np.int16),
        cols=(place // SIDE % SIDE).astype(np.int16),
        num_images=200,
        transform=transform,
        metric=COSINE,
        precision="half",
        coreset_ratio=0.1,
        covering_radius=0.5,
        num_neighbors=1,
    )
    queries = as_stored(apply_transform(transform, drawn(1).reshape(-1, RAW_DIM)), "half")
    _, distances = nearest_vectors(queries, stored, COSINE)
    detector = store_detector(
        database,
        category_id=category,
        extractor_id=extractor,
        bank=bank,
        threshold=Threshold(float(np.quantile(distances, 0.99)), 0.01, {"rule": "given"}),
        calibration=Calibration(queries, distances),
        settings={},
        metrics={},
        library_versions={},
    )
    patches = drawn(KEPT)
    with database.begin() as connection:
        store_image_patches(connection, extractor, ids[-KEPT:], list(patches))
        connection.execute(
            text(
                "INSERT INTO pgdefect.inspection (image_id, detector_id, raw_score, "
                "normalized_score, threshold, worst_row, worst_col, anomaly_map, search) "
                "SELECT i.id, d.id, s.score, pgdefect.normalized_score(s.score, d.threshold, "
                "d.score_center), d.threshold, i.id % :side, i.id / :side % :side, "
                # Of the last ones no two cells are alike: such a map takes what a real one does.
                "CASE WHEN i.id <= :last THEN array_fill(0.1::real, ARRAY[:side, :side]) "
                "ELSE (SELECT array_agg(r.cells) FROM (SELECT array_agg(random()::real) AS cells "
                "FROM generate_series(0, :side * :side - 1) n WHERE i.id > 0 GROUP BY n % :side) "
                "r) END, 'hnsw' "
                "FROM pgdefect.image i, pgdefect.detector d, "
                "LATERAL (SELECT d.threshold * (0.5 + (i.id % 997) / 1900.0) AS score) s "
                "ORDER BY i.id"
            ),
            {"side": SIDE, "last": ids[-KEPT - 1]},
        )
        inspections = list(
            connection.scalars(text("SELECT id FROM pgdefect.inspection ORDER BY image_id"))
        )
    with database.autocommit() as connection:
        connection.execute("VACUUM (ANALYZE)")
    return Scene(database, np.array(inspections), ids[-KEPT:], detector, bank, patches)


def _statistics(report: Report, context: Context, connection: Any, scene: Scene) -> None:
    from scipy import stats

    rate = [300_000, 1_000_000]
    _add(
        report,
        "rate_interval(300000, 1000000)",
        "scipy.stats.binomtest(…).proportion_ci(method='exact')",
        lambda: connection.execute("SELECT defect.rate_interval(%s, %s)", rate).fetchone(),
        lambda: stats.binomtest(*rate).proportion_ci(method="exact"),
        key="rate_interval",
    )
    for a, b in (([7, 20], [0, 16]), ([300_000, 1_000_000], [301_000, 1_000_000])):
        table = [[a[0], a[1] - a[0]], [b[0], b[1] - b[0]]]
        _add(
            report,
            f"fisher_p({a[0]}, {a[1]}, {b[0]}, {b[1]})",
            "scipy.stats.fisher_exact",
            lambda a=a, b=b: connection.execute(  # type: ignore[misc]
                "SELECT defect.fisher_p(%s, %s, %s, %s)", a + b
            ).fetchone(),
            lambda table=table: stats.fisher_exact(table),  # type: ignore[misc]
            key="fisher_p",
        )


def _map(report: Report, context: Context, connection: Any, scene: Scene) -> None:
    """An image's map with the box of each cell, and what no program can leave out: its cells."""
    inspection = int(scene.inspections[-1])
    _add(
        report,
        f"anomaly_map: {SIDE * SIDE:,} cells, each with its box",
        "the same cells from the table, unnested, without row, column and box",
        lambda: connection.execute(
            "SELECT * FROM defect.anomaly_map(inspection => %s)", [inspection]
        ).fetchall(),
        lambda: connection.execute(
            "SELECT unnest(anomaly_map) FROM pgdefect.inspection WHERE id = %s", [inspection]
        ).fetchall(),
        key="anomaly_map",
    )


def _views(report: Report, context: Context, connection: Any, scene: Scene) -> None:
    number = f"{len(scene.inspections):,}"
    _add(
        report,
        f"SELECT * FROM defect.inspections: {number} rows",
        "the columns of the tables it joins, of as many rows",
        lambda: connection.execute("SELECT * FROM defect.inspections").fetchall(),
        lambda: connection.execute(
            "SELECT s.id, c.name, s.image_id, s.detector_id, i.label, i.defect_type, s.raw_score, "
            "s.normalized_score, s.threshold, s.worst_row, s.worst_col, s.search, "
            "r.path || '/' || i.path, s.created_at, d.kind, i.known_label, i.known_defect_type, "
            "s.vote, s.probable_defect_type "
            "FROM pgdefect.inspection s JOIN pgdefect.image i ON i.id = s.image_id "
            "JOIN pgdefect.image_root r ON r.id = i.root_id "
            "JOIN pgdefect.category c ON c.id = i.category_id "
            "JOIN pgdefect.detector d ON d.id = s.detector_id"
        ).fetchall(),
        key="inspections",
        repeat=3,
    )


def _judgement(report: Report, context: Context, connection: Any, scene: Scene) -> None:
    """An image judged from its kept patches; the peer has bank and patches in memory."""
    from pgdefect.core.distance import as_stored
    from pgdefect.vision.patchcore.transform import apply_transform

    image = int(scene.kept[0])
    patches = as_stored(scene.patches[0].reshape(-1, RAW_DIM), "half")
    stored = scene.bank.embeddings
    bank = np.ascontiguousarray((stored / np.linalg.norm(stored, axis=1, keepdims=True)).T)

    def in_memory() -> float:
        vectors = as_stored(apply_transform(scene.bank.transform, patches), "half")
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return float((1.0 - (vectors @ bank).max(axis=1)).max())

    def in_sql() -> Any:
        return connection.execute(
            "SELECT raw_score FROM defect.inspect(%s, bank => %s)", [str(image), scene.bank_id]
        ).fetchone()

    _add(
        report,
        f"inspect: {SIDE * SIDE:,} kept patches against the bank",
        "NumPy: every patch with every vector, all in memory",
        in_sql,
        in_memory,
        key="inspect",
    )
    report.check("inspect has NumPy's score", abs(in_sql()[0] - in_memory()) < 1e-5)


def _add(
    report: Report,
    what: str,
    against: str,
    ours: Callable[[], Any],
    peer: Callable[[], Any],
    *,
    key: str,
    repeat: int = NUM_TIMES,
) -> None:
    for call in (ours, peer):
        call()
    seconds, peer_seconds = median_alternating(ours, peer, repeat)
    report.rows.append(Row(what, against, seconds, peer_seconds, notes=[key]))
