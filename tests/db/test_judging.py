"""What SQL says of scores, maps and kept patches is what Python says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray
from rows import add_extractor, add_images, memory_bank, store
from sklearn.metrics import roc_auc_score
from sqlalchemy import text

from pgdefect.core.config import Settings
from pgdefect.core.distance import METRICS, as_stored
from pgdefect.core.errors import NotFound
from pgdefect.core.types import EmbeddingTransform, Float32
from pgdefect.db.connection.binary_format import vector_array_binary
from pgdefect.db.connection.engine import Database, driver
from pgdefect.db.records.detectors import active_detector
from pgdefect.db.records.patches import store_image_patches
from pgdefect.evaluation import image_auroc
from pgdefect.usecases.common.patch_search import open_search, score_image
from pgdefect.usecases.evaluate.evaluate import EvaluateOptions, evaluate
from pgdefect.vision.patchcore.transform import apply_transform, fit_transform

DIM, GRID = 12, (4, 4)


def one(database: Database, query: str, *parameters: Any) -> Any:
    with psycopg.connect(database.url) as connection:
        row = connection.execute(query, parameters).fetchone()
    assert row is not None
    return row


# -- kept patches --------------------------------------------------------------------------


@dataclass(frozen=True)
class Kept:
    """An image without a file, whose patch embeddings are kept."""

    image: int
    extractor: int
    patches: Float32

    def as_kept(self) -> Float32:
        return self.patches.reshape(-1, DIM).astype(np.float16).astype(np.float32)


@pytest.fixture
def kept(database: Database) -> Kept:
    images = add_images(database, "parts", 11)
    extractor = add_extractor(database, DIM)
    patches = np.random.default_rng(5).normal(1, 2, (*GRID, DIM)).astype(np.float32)
    with database.begin() as connection:
        store_image_patches(connection, extractor, [images[10]], [patches * 3])
        store_image_patches(connection, extractor, [images[10]], [patches])
    return Kept(images[10], extractor, patches)


def transform_of(kind: str, raw: Float32) -> EmbeddingTransform:
    if kind == "centered":
        return fit_transform(raw, pca_dim=None)
    if kind == "projected":
        return fit_transform(raw, pca_dim=7)
    return fit_transform(raw, kind=kind)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [{}, {"num_neighbors": 5}, {"worst_share": 0.2}],
    ids=["worst patch", "re-weighted", "mean of the worst"],
)
def test_inspect_equals_python(database: Database, kept: Kept, options: dict[str, Any]) -> None:
    """Under every transform and metric; rounded to half precision, and not."""
    precision = "half" if options else "single"
    raw = np.random.default_rng(6).normal(0, 2, (300, DIM)).astype(np.float32)
    with database.connect() as connection:
        images = list(connection.scalars(text("SELECT id FROM pgdefect.image ORDER BY id")))[:10]
    for kind, metric in product(("none", "unit", "centered", "projected"), ("cosine", "l2")):
        transform = transform_of(kind, raw)
        bank = replace(
            memory_bank(raw, images, metric=METRICS[metric], precision=precision),
            embeddings=as_stored(apply_transform(transform, raw), precision),
            transform=transform,
            **options,
        )
        detector = store(database, "parts", kept.extractor, bank)
        info = active_detector(database, "parts").bank
        expected = score_image(
            open_search(database, info, "exact"),
            as_stored(apply_transform(transform, kept.as_kept()), precision),
            GRID,
        )
        found = one(
            database,
            "SELECT raw_score, worst_row, worst_col, bank_position, bank_id, image_id, verdict, "
            "threshold, normal_image_id FROM defect.inspect(%s)",
            str(kept.image),
        )
        assert found[0] == pytest.approx(expected.raw_score, abs=1e-5, rel=1e-5), (kind, metric)
        assert expected.positions is not None
        place = (expected.worst_row, expected.worst_col)
        assert (found[1], found[2]) == place
        assert found[3] == expected.positions[place]
        assert found[4:6] == (detector, kept.image)
        assert found[6] == ("anomalous" if expected.raw_score > 0.5 else "normal")
        assert found[8] == bank.image_ids[found[3]]


def test_an_image_without_kept_patches_is_a_row_without_a_verdict(
    database: Database, kept: Kept
) -> None:
    """Of many images asked about, one must not end the query."""
    [image] = add_images(database, "parts", 1, path=lambda n: "one more.png")
    images = [image, kept.image]
    raw = np.random.default_rng(6).normal(0, 2, (30, DIM)).astype(np.float32)
    detector = store(database, "parts", kept.extractor, memory_bank(raw, images))
    with psycopg.connect(database.url) as connection:
        rows = connection.execute(
            "SELECT s.image_id, s.bank_id, s.threshold, s.verdict IS NULL, s.raw_score IS NULL, "
            "s.worst_box IS NULL FROM unnest(%s::bigint[]) i, "
            "defect.inspect(i::text, bank => %s) s ORDER BY 1 DESC",
            [images, detector],
        ).fetchall()
    assert rows == [
        (image, detector, 0.5, True, True, True),
        (kept.image, detector, 0.5, False, False, False),
    ]


def test_inspect_asks_any_bank_and_stores_nothing(factory: Database, settings: Settings) -> None:
    """Of real images: the score of the photograph itself, but for half precision."""
    with psycopg.connect(factory.url) as connection:
        connection.read_only = True
        rows = connection.execute(
            "SELECT b.bank_id, i.raw_score, s.raw_score, i.worst_row, s.worst_row, i.verdict, "
            "s.verdict, i.normalized_score, s.normalized_score FROM defect.banks b "
            "CROSS JOIN LATERAL (SELECT DISTINCT ON (image_id) * FROM defect.inspections n "
            "  WHERE n.detector_id = b.bank_id AND n.threshold = b.threshold) i "
            "CROSS JOIN LATERAL defect.inspect(i.image_id::text, bank => b.bank_id) s"
        ).fetchall()
    assert {row[0] for row in rows} == {1, 2}
    assert len(rows) > 50
    scores = np.array([(row[1], row[2]) for row in rows])
    np.testing.assert_allclose(scores[:, 1], scores[:, 0], rtol=2e-3)
    assert np.abs(scores[:, 1] - scores[:, 0]).mean() < 2e-4 * scores.mean()
    assert sum(row[3] == row[4] for row in rows) > 0.9 * len(rows)
    assert sum(row[5] == row[6] for row in rows) > 0.95 * len(rows)
    size = one(
        factory, "SELECT DISTINCT size_bytes, rows, cols, embedding_dim FROM defect.kept_patches"
    )
    assert size[0] == pytest.approx(size[1] * size[2] * (2 * size[3] + 8), rel=0.01)


def test_what_cannot_be_inspected_is_refused(database: Database, kept: Kept) -> None:
    images = add_images(database, "others", 2, path=lambda n: f"other/{n}.png")
    vectors = np.random.default_rng(1).normal(0, 1, (30, DIM)).astype(np.float32)
    bank = memory_bank(vectors, images)
    store(database, "others", add_extractor(database, DIM, "other"), bank)

    def refused(image: int, bank: int | None, words: str) -> None:
        with pytest.raises(NotFound, match=words), database.connect() as connection:
            driver(connection).execute("SELECT defect.inspect(%s, %s)", [str(image), bank])

    refused(kept.image, None, "no memory bank in use for the category of image")
    refused(kept.image, 99, r"no memory bank 99.*defect\.banks")
    refused(12345, None, "no stored image is called '12345'")


def test_patches_are_kept_in_half_precision_and_replaced(database: Database, kept: Kept) -> None:
    stored = one(
        database,
        "SELECT rows, cols, embeddings::text[] FROM pgdefect.image_patches WHERE image_id = %s",
        kept.image,
    )
    values = np.array([[float(x) for x in v.strip("[]").split(",")] for v in stored[2]])
    assert stored[:2] == GRID
    np.testing.assert_allclose(values, kept.as_kept(), rtol=1e-3)
    with database.begin() as connection:
        with pytest.raises(ValueError, match="65504"):
            store_image_patches(connection, kept.extractor, [kept.image], [kept.patches * 1e6])
        with pytest.raises(ValueError, match="2 images and patches of 1"):
            store_image_patches(connection, kept.extractor, [1, 2], [kept.patches])
        store_image_patches(connection, kept.extractor, [], [])


def test_arrays_of_half_vectors_have_half_the_bytes() -> None:
    single = vector_array_binary(np.ones((3, 8), dtype=np.float32), 7)
    half = vector_array_binary(np.ones((3, 8), dtype=np.float16), 7)
    assert len(single) - len(half) == 3 * 8 * 2


# -- anomaly maps --------------------------------------------------------------------------


def test_the_anomaly_map_is_the_stored_one(trained: Database) -> None:
    stored = one(
        trained,
        "SELECT s.anomaly_map, s.threshold, i.worst_row, i.worst_col, i.worst_box "
        "FROM pgdefect.inspection s JOIN defect.inspections i ON i.inspection_id = s.id "
        "WHERE s.id = 5",
    )
    expected = np.array(stored[0], dtype=np.float32)
    with psycopg.connect(trained.url) as connection:
        rows = connection.execute("SELECT * FROM defect.anomaly_map(inspection => 5)").fetchall()
    assert [row[:2] for row in rows] == [(y, x) for y in range(16) for x in range(16)]
    np.testing.assert_array_equal(
        np.array([row[2] for row in rows], dtype=np.float32).reshape(16, 16), expected
    )
    assert [row[3] for row in rows] == (expected > stored[1]).reshape(-1).tolist()
    assert rows[stored[2] * 16 + stored[3]][4] == stored[4]
    assert rows[17][4] == "8,8,8,8"
    with pytest.raises(NotFound, match="no inspection 999"), trained.connect() as connection:
        driver(connection).execute("SELECT * FROM defect.anomaly_map(999)")


# -- image AUROC ---------------------------------------------------------------------------


def scored(
    database: Database, detector: int, scores: NDArray[np.float64], anomalous: NDArray[np.bool_]
) -> None:
    """Test images with these scores, in place of those that were."""
    with database.begin() as connection:
        connection.execute(text("DELETE FROM pgdefect.image WHERE split = 'test'"))
    ids = add_images(
        database,
        "parts",
        len(scores),
        split="test",
        path=lambda n: f"test/{n}.png",
        sha256=lambda n: f"{n + 1000:064x}",
        label=lambda n: "anomalous" if anomalous[n] else "normal",
    )
    with psycopg.connect(database.url) as connection:
        connection.cursor().executemany(
            "INSERT INTO pgdefect.inspection (image_id, detector_id, raw_score, "
            "normalized_score, threshold, worst_row, worst_col, anomaly_map, search) "
            "VALUES (%s, %s, %s, 0.5, 0.5, 0, 0, '{{0.5}}', 'hnsw')",
            [(id_, detector, score) for id_, score in zip(ids, scores.tolist(), strict=True)],
        )


def test_image_auroc_equals_python_with_ties(database: Database) -> None:
    learned = add_images(database, "parts", 4)
    vectors = np.random.default_rng(1).normal(0, 1, (30, DIM)).astype(np.float32)
    detector = store(database, "parts", add_extractor(database, DIM), memory_bank(vectors, learned))
    rng = np.random.default_rng(3)
    for levels in (2, 5, 1000):
        anomalous = rng.random(150) < 0.3
        scores = rng.integers(0, levels, 150) / levels + 0.2 * anomalous
        scored(database, detector, scores, anomalous)
        [found] = one(database, "SELECT defect.image_auroc(%s)", detector)
        assert found == pytest.approx(image_auroc(scores, anomalous), abs=1e-12)
        assert found == pytest.approx(roc_auc_score(anomalous, scores), abs=1e-12)
    # Three of four pairs won, and a tie.
    scored(database, detector, np.array([1.0, 2, 2, 3]), np.array([False, False, True, True]))
    assert one(database, "SELECT defect.image_auroc(%s)", detector) == (0.875,)
    assert one(database, "SELECT defect.image_auroc(%s, 'production')", detector) == (None,)
    scored(database, detector, np.array([1.0, 2]), np.array([True, True]))
    assert one(database, "SELECT defect.image_auroc(%s)", detector) == (None,)
    with pytest.raises(NotFound, match="no detector 99"), database.connect() as connection:
        driver(connection).execute("SELECT defect.image_auroc(99)")


def test_image_auroc_is_what_evaluate_says(trained: Database, settings: Settings) -> None:
    """Before and after a review, with and without parts that were learned from."""
    with trained.begin() as connection:
        connection.execute(
            text(
                "UPDATE pgdefect.image SET group_name = 'one part' WHERE path IN "
                "('test/scratch/000.png') OR id = (SELECT max(image_id) "
                "FROM pgdefect.memory_bank_patch)"
            )
        )
        connection.execute(
            text(
                "SELECT defect.review(id::text, 'normal') FROM pgdefect.image "
                "WHERE path = 'test/stain/001.png'"
            )
        )
    for drop in (False, True):
        options = EvaluateOptions(bootstrap=0, drop_leaks=drop)
        report = evaluate(trained, settings, "parts", options)
        assert (report.normal_images, report.anomalous_images) == (5, 8 - drop)
        figure = report.figures["image_auroc"]
        assert figure is not None
        assert figure < 1
        [found] = one(trained, "SELECT defect.image_auroc(1, drop_leaks => %s)", drop)
        assert found == pytest.approx(figure, abs=1e-12)
        shown = one(
            trained,
            "SELECT b.image_auroc, c.image_auroc FROM defect.banks b "
            "JOIN defect.categories c ON c.detector_id = b.bank_id",
        )
        assert shown == pytest.approx((figure, figure), abs=1e-12)
