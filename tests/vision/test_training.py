"""Training on real photographs, and inspection with what came of it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cells import SIZE, TINY, bank_rows, count
from sqlalchemy import text

from pgdefect.core.config import Settings
from pgdefect.core.distance import COSINE, as_stored, pairwise
from pgdefect.core.errors import PgdefectError
from pgdefect.core.types import Float32
from pgdefect.db.connection.engine import Database
from pgdefect.db.records.detectors import active_detector
from pgdefect.db.records.extractors import load_extractor
from pgdefect.db.search.queries import image_embeddings_of, images_of
from pgdefect.usecases.inspect.inspect import inspect
from pgdefect.usecases.inspect.inspector import Inspector
from pgdefect.usecases.search.search import Query, SearchOptions, search
from pgdefect.usecases.train.options import TrainOptions
from pgdefect.usecases.train.train import train
from pgdefect.vision.images.image import load_image
from pgdefect.vision.images.preprocess import Preprocessing
from pgdefect.vision.networks.backbone import find_backbone
from pgdefect.vision.networks.extractor import Extractor
from pgdefect.vision.patchcore import patchcore
from pgdefect.vision.patchcore.transform import apply_transform

pytestmark = pytest.mark.train

TILES = Path(__file__).parents[3] / "shared/data/magnetic_tile"


# -- the whole way -------------------------------------------------------------------------


def test_trained_on_real_images_it_tells_defects(cells: Database, settings: Settings) -> None:
    detector = active_detector(cells, "cells")
    vectors, image_ids = bank_rows(cells, detector)
    normal = {i.id for i in images_of(cells, "cells", split="train", label="normal")}
    assert len(vectors) == detector.bank.num_vectors > 20
    assert vectors.shape[1] == 17
    assert set(image_ids) <= normal
    with cells.connect() as connection:
        rule, images = connection.execute(
            text(
                "SELECT threshold_rule, b.num_images FROM pgdefect.detector d "
                "JOIN pgdefect.memory_bank b USING (id) WHERE id = :id"
            ),
            {"id": detector.id},
        ).one()
    # All are in the bank, and each is compared with the others.
    assert (images, rule["held_out_images"], len(normal)) == (12, 12, 12)
    assert len(set(image_ids)) <= images

    report = inspect(cells, settings, "cells", split="test")
    assert report.failed == ()
    assert len(report.inspections) == 7
    scores = {
        label: [i.raw_score for i in report.inspections if i.known_label == label]
        for label in ("normal", "anomalous")
    }
    assert np.median(scores["anomalous"]) > np.median(scores["normal"])
    assert any(i.is_anomalous for i in report.inspections if i.known_label == "anomalous")
    for inspection in report.inspections:
        assert (inspection.normalized_score > 0.5) == inspection.is_anomalous
        assert inspection.scores.distances.shape == (16, 16)
        worst = inspection.scores.distances[
            inspection.scores.worst_row, inspection.scores.worst_col
        ]
        assert worst == inspection.scores.distances.max()

    query = max(report.inspections, key=lambda i: i.raw_score)
    options = SearchOptions(k=5, by="picture")
    found = search(cells, settings, Query([str(query.image_id)]), options)
    assert found.inspection is not None
    assert found.inspection.raw_score == query.raw_score
    assert [n.rank for n in found.neighbors] == [1, 2, 3, 4, 5]
    assert {n.image.category for n in found.neighbors} == {"cells"}
    assert query.image_id not in {n.image.id for n in found.neighbors}
    options = SearchOptions(k=500, by="picture", all_categories=True, fold=False)
    everywhere = search(cells, settings, Query([str(query.image_id)]), options)
    assert len(everywhere.neighbors) == count(cells, "pgdefect.image_embedding") - 1


@pytest.mark.parametrize(
    "options",
    [
        TINY,
        replace(TINY, metric="l2", transform="none", num_neighbors=1),
        replace(TINY, metric="l2", transform="none", precision="single"),
        replace(TINY, precision="single"),
        replace(TINY, transform="unit", metric="cosine"),
        replace(TINY, pca_dim=None, batch_size=3),
    ],
    ids=["default", "l2", "l2-single-3", "single", "unit", "no-pca"],
)
def test_scores_equal_a_computation_in_numpy(
    cells: Database, settings: Settings, options: TrainOptions
) -> None:
    """Every option that changes a score, by equations 6 and 7 of the paper on plain arrays."""
    if options is not TINY:
        train(cells, settings, "cells", options)
    detector = active_detector(cells, "cells")
    bank = detector.bank
    assert (bank.metric.name, bank.precision) == (options.metric, options.precision)
    vectors, _ = bank_rows(cells, detector)
    extractor = Extractor(load_extractor(cells, detector.extractor_id, settings.cache_dir))
    reports = {
        kind: inspect(cells, settings, "cells", split="test", search=kind, store=False)
        for kind in ("hnsw", "exact")
    }
    for n, inspection in enumerate(reports["exact"].inspections):
        pixels = extractor.preprocessing.apply(load_image(inspection.path))
        patches = extractor(pixels[None])[0]
        queries = as_stored(
            apply_transform(bank.transform, patches.reshape(-1, patches.shape[-1])),
            bank.precision,
        )
        distances = pairwise(bank.metric, queries, vectors)
        nearest = distances.min(axis=1)
        np.testing.assert_allclose(
            inspection.scores.distances.ravel(), nearest, rtol=1e-3, atol=1e-6
        )
        worst = int(nearest.argmax())
        score = float(nearest[worst])
        if options.num_neighbors > 1:
            to_bank = pairwise(bank.metric, vectors[[distances[worst].argmin()]], vectors)[0]
            support = to_bank.argsort(kind="stable")[: options.num_neighbors]
            euclidean = distances[worst, support].astype(np.float64)
            if bank.metric is COSINE:
                euclidean = np.sqrt(2 * euclidean)
            score *= 1 - np.exp(euclidean[0]) / np.exp(euclidean).sum()
        assert inspection.raw_score == pytest.approx(score, rel=1e-3)
        # The index may miss a patch's nearest vector, never the image's score.
        approximate = reports["hnsw"].inspections[n]
        assert approximate.search == "hnsw"
        assert approximate.raw_score == pytest.approx(inspection.raw_score, rel=1e-4)
        assert approximate.verdict == inspection.verdict
        assert (
            approximate.scores.distances >= inspection.scores.distances * (1 - 1e-4) - 1e-6
        ).all()


def test_same_seed_same_bank(cells: Database, settings: Settings) -> None:
    first = active_detector(cells, "cells")
    train(cells, settings, "cells", TINY)
    second = active_detector(cells, "cells")
    train(cells, settings, "cells", replace(TINY, seed=1))
    third = active_detector(cells, "cells")
    assert (second.version, third.version) == (2, 3)
    for a, b in zip(bank_rows(cells, first), bank_rows(cells, second), strict=True):
        np.testing.assert_array_equal(a, b)
    assert first.threshold == second.threshold
    assert not np.array_equal(bank_rows(cells, first)[1], bank_rows(cells, third)[1])


def test_layers_are_weighted_in_the_transform(cells: Database, settings: Settings) -> None:
    """The extractor is the same one, and its first dimensions, those of blocks.2, count more."""
    plain = active_detector(cells, "cells")
    weighted = replace(
        TINY, layers=("blocks.4", "blocks.2", "blocks.4"), layer_weights={"blocks.2": 100.0}
    )
    train(cells, settings, "cells", weighted)
    detector = active_detector(cells, "cells")
    assert detector.extractor_id == plain.extractor_id
    assert detector.bank.transform.components is not None
    assert plain.bank.transform.components is not None
    shares = [
        float((transform[:, :40] ** 2).sum() / (transform**2).sum())
        for transform in (plain.bank.transform.components, detector.bank.transform.components)
    ]
    assert shares[0] < 0.9
    assert shares[1] > 0.999
    report = inspect(cells, settings, "cells", split="test")
    assert len(report.inspections) == 7


def test_image_embedding_is_the_same_at_training_and_inspection(
    cells: Database, settings: Settings
) -> None:
    detector = active_detector(cells, "cells")
    images = images_of(cells, "cells", split="train")[:3]
    inspector = Inspector(cells, settings, "cells")

    def fail(index: int, error: Exception) -> None:
        raise error

    for image in images:
        [[(_, judged)]] = list(inspector.judge([image.path], fail))
        stored = image_embeddings_of(cells, detector.extractor_id, [image.id])[image.id]
        assert stored is not None
        np.testing.assert_allclose(judged.embedding, stored, atol=3e-4)
        assert np.linalg.norm(judged.embedding) == pytest.approx(1, abs=1e-6)


def test_inspecting_again_adds_inspections_and_changes_none(
    cells: Database, settings: Settings, tmp_path: Path
) -> None:
    before = count(cells, "pgdefect.inspection")
    first = inspect(cells, settings, "cells", split="test")
    images = count(cells, "pgdefect.image")
    assert count(cells, "pgdefect.inspection") == before + 7
    kept = rows(cells)
    again = inspect(cells, settings, "cells", split="test")
    assert not {i.inspection_id for i in again.inspections} & set(kept)
    assert {key: value for key, value in rows(cells).items() if key in kept} == kept
    assert count(cells, "pgdefect.inspection") == before + 14
    # Unless the request is the same.
    key = inspect(cells, settings, "cells", split="test", event_key="monday 7:00")
    same = inspect(cells, settings, "cells", split="test", event_key="monday 7:00")
    assert (key.resumed, same.resumed) == (0, 7)
    assert same.to_json()["inspections"] == key.to_json()["inspections"]
    assert count(cells, "pgdefect.inspection") == before + 21
    # A copy of a known file is the known image, also twice in one call.
    copies = [tmp_path / "a.png", tmp_path / "b.png"]
    for copy in copies:
        shutil.copy(first.inspections[0].path, copy)
    report = inspect(cells, settings, "cells", copies)
    assert len({i.inspection_id for i in report.inspections}) == 1
    assert {i.image_id for i in report.inspections} == {first.inspections[0].image_id}
    assert count(cells, "pgdefect.inspection") == before + 22
    assert count(cells, "pgdefect.image") == images
    # A new file is recorded once, as production.
    load = np.asarray(load_image(copies[0]))
    from PIL import Image

    Image.fromarray(load[::-1]).save(tmp_path / "new.png")
    for _ in range(2):
        inspect(cells, settings, "cells", [tmp_path / "new.png"])
    assert count(cells, "pgdefect.image") == images + 1
    assert count(cells, "pgdefect.inspection") == before + 24
    inspect(cells, settings, "cells", [tmp_path / "new.png"], store=False)
    assert count(cells, "pgdefect.inspection") == before + 24
    assert count(cells, "pgdefect.inspection_run") == 0


def rows(database: Database) -> dict[int, tuple[object, ...]]:
    """Every stored inspection by its id."""
    with database.connect() as connection:
        found = connection.execute(text("SELECT * FROM pgdefect.inspection"))
        return {row.id: tuple(row) for row in found}


# -- what is not asked for ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "layer_weights", "whiten", "worst_share"),
    [
        ({}, {"blocks.2": 1.5}, 0.25, 0.005),
        ({"layers": ("blocks.4", "blocks.2")}, {"blocks.2": 1.5}, 0.25, 0.005),
        ({"layers": ("blocks.2", "blocks.3")}, {}, 0.25, 0.005),
        ({"layer_weights": {"blocks.4": 2.0}}, {"blocks.4": 2.0}, 0.25, 0.005),
        ({"layer_weights": {}, "worst_share": 0.0}, {}, 0.25, 0.0),
        ({"worst_share": 0.02}, {"blocks.2": 1.5}, 0.25, 0.02),
        ({"num_neighbors": 9}, {"blocks.2": 1.5}, 0.25, 0.0),
        ({"transform": "unit"}, {}, 0.25, 0.005),
        ({"transform": "none", "metric": "l2"}, {}, 0.25, 0.0),
        ({"backbone": "efficientnet_lite2"}, {"blocks.2": 1.5}, 0.25, 0.005),
        ({"backbone": "resnet18"}, {}, 0.25, 0.005),
        ({"backbone": "efficientnet_lite0+efficientnet_lite2"}, {}, 0.25, 0.005),
        ({"backbone": "mobilenetv3_small_050", "layers": ("blocks.2",)}, {}, 0.25, 0.005),
        ({"local_contrast": None}, {}, 0.0, 0.005),
        ({"local_contrast": None, "whiten": 0.5}, {}, 0.5, 0.005),
        (
            {"local_contrast": None, "layer_weights": {"blocks.2": 2.0}},
            {"blocks.2": 2.0},
            0.0,
            0.005,
        ),
        ({"local_contrast": 0.2, "whiten": 0.0}, {"blocks.2": 1.5}, 0.0, 0.005),
    ],
    ids=str,
)
def test_what_is_not_asked_for_goes_with_the_rest(
    options: dict[str, Any], layer_weights: dict[str, float], whiten: float, worst_share: float
) -> None:
    chosen = TrainOptions(**options)
    assert chosen.chosen_layer_weights == layer_weights
    assert chosen.chosen_worst_share == worst_share
    recorded = chosen.recorded()
    assert (recorded["layer_weights"], recorded["worst_share"]) == (layer_weights, worst_share)
    assert chosen.chosen_whiten == recorded["whiten"] == whiten


def test_a_detector_says_what_was_chosen_for_it(cells: Database, settings: Settings) -> None:
    train(cells, settings, "cells", replace(TINY, num_neighbors=1))
    detector = active_detector(cells, "cells")
    assert detector.bank.worst_share == 0.005
    with cells.connect() as connection:
        found = connection.execute(
            text(
                "SELECT d.settings -> 'layer_weights', d.settings -> 'worst_share', b.worst_share "
                "FROM pgdefect.detector d JOIN pgdefect.memory_bank b ON b.id = d.id ORDER BY d.id"
            )
        ).all()
    weights = {"blocks.2": 1.5}
    assert [tuple(row) for row in found[-2:]] == [(weights, 0.0, 0.0), (weights, 0.005, 0.005)]
    # Asked for by name it is the same bank.
    train(cells, settings, "cells", replace(TINY, num_neighbors=1, layer_weights=weights))
    again = active_detector(cells, "cells")
    for a, b in zip(bank_rows(cells, detector), bank_rows(cells, again), strict=True):
        np.testing.assert_array_equal(a, b)
    train(cells, settings, "cells", replace(TINY, num_neighbors=1, layer_weights={}))
    assert not np.array_equal(
        bank_rows(cells, active_detector(cells, "cells"))[0], bank_rows(cells, again)[0]
    )


# -- the exported extractor ----------------------------------------------------------------


def test_exported_features_equal_torchs_on_real_images(cells: Database, settings: Settings) -> None:
    detector = active_detector(cells, "cells")
    extractor = Extractor(load_extractor(cells, detector.extractor_id, settings.cache_dir))
    backbone = find_backbone("efficientnet_lite0")
    embedder = patchcore.build_embedder(backbone, backbone.layers, extractor.preprocessing, None)
    assert embedder.spec.fingerprint == extractor.artifact.spec.fingerprint
    paths = [image.path for image in images_of(cells, "cells")[:3]]
    paths += [image.path for image in images_of(cells, "parts")[:2]]
    if TILES.is_dir():
        paths += [str(path) for path in sorted(TILES.glob("test/*/*"))[::90]]
    sizes = set()
    same_size: list[Float32] = []
    for path in paths:
        image = load_image(path)
        sizes.add(image.shape)
        inputs = extractor.preprocessing.apply(image)[None]
        if inputs.shape[2:] == SIZE:
            same_size.append(inputs)
        exported, expected = extractor(inputs), embedder.embed(inputs, "cpu")
        grid = extractor.grid_of(image.shape[:2])
        assert exported.shape == expected.shape == (1, *grid, 152)
        assert np.linalg.norm(exported - expected) <= 1e-5 * np.linalg.norm(expected)
    assert len(sizes) > (2 if TILES.is_dir() else 1)
    batch = np.concatenate(same_size)
    assert len(batch) > 3
    np.testing.assert_allclose(extractor(batch)[-1], extractor(batch[-1:])[0], atol=1e-4)


def test_extractor_refuses_images_of_another_size(cells: Database, settings: Settings) -> None:
    """Where images are stretched to one."""
    detector = active_detector(cells, "cells")
    artifact = load_extractor(cells, detector.extractor_id, settings.cache_dir)
    stretched = replace(artifact.spec, preprocessing=Preprocessing(SIZE).to_dict())
    extractor = Extractor(replace(artifact, spec=stretched))
    assert extractor(np.zeros((1, 3, *SIZE), dtype=np.float32)).shape == (1, 16, 16, 152)
    with pytest.raises(ValueError, match=r"expected images \(n, 3, 128, 128\), got \(1, 3, 64"):
        extractor(np.zeros((1, 3, 64, 64), dtype=np.float32))


def test_damaged_cache_is_replaced_by_what_the_database_holds(
    cells: Database, tmp_path: Path
) -> None:
    detector = active_detector(cells, "cells")
    whole = load_extractor(cells, detector.extractor_id, tmp_path)
    [cached] = (tmp_path / "extractors").iterdir()
    cached.write_bytes(whole.onnx[:1000])
    assert load_extractor(cells, detector.extractor_id, tmp_path).onnx == whole.onnx
    assert cached.read_bytes() == whole.onnx
    # A cache that cannot be written is no obstacle.
    (tmp_path / "file").write_text("")
    assert load_extractor(cells, detector.extractor_id, tmp_path / "file").onnx == whole.onnx
    with cells.begin() as connection:
        connection.execute(text("UPDATE pgdefect.extractor SET onnx = onnx || '\\x00'::bytea"))
    shutil.rmtree(tmp_path / "extractors")
    with pytest.raises(PgdefectError, match="does not match its checksum; train the category"):
        load_extractor(cells, detector.extractor_id, tmp_path)
