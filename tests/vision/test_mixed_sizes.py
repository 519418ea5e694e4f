"""A category whose images differ in size and aspect ratio, with the default options."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import text

from pgdefect.cli.main import run
from pgdefect.core.config import Settings
from pgdefect.core.distance import as_stored
from pgdefect.core.errors import ImageError, TrainingError, UsageError
from pgdefect.core.types import Float32, Inspection, StoredImage
from pgdefect.db.connection.engine import Database
from pgdefect.db.records.detectors import active_detector
from pgdefect.db.records.extractors import load_extractor
from pgdefect.db.records.summaries import list_detectors
from pgdefect.db.search.queries import bank_cells, image_embeddings_of, images_of, read_bank
from pgdefect.usecases.demo import solar_cells
from pgdefect.usecases.exchange.export_anomalib import export_anomalib
from pgdefect.usecases.ingest import ingest
from pgdefect.usecases.inspect.inspect import inspect
from pgdefect.usecases.inspect.inspector import Inspector
from pgdefect.usecases.search.search import Query, SearchOptions, search
from pgdefect.usecases.train.options import TrainOptions
from pgdefect.usecases.train.train import TrainReport, train
from pgdefect.vision.images.image import load_image, sha256_of
from pgdefect.vision.images.preprocess import Preprocessing
from pgdefect.vision.networks.backbone import find_backbone
from pgdefect.vision.networks.extractor import Extractor, image_embeddings
from pgdefect.vision.patchcore import patchcore
from pgdefect.vision.patchcore.transform import apply_transform

pytestmark = pytest.mark.train

OPTIONS = TrainOptions(image_size=(96, 96))
SIZES = [(300, 300), (150, 300), (97, 211), (300, 133), (251, 251), (64, 200), (111, 37)]
"""Heights and widths, taken in turn."""
NUM_TRAIN, NUM_TEST = 14, 7
CUT_OFF, BROKEN = "train/good/005.png", "train/good/999.png"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cut-outs of solar cells, and one file that is no image."""
    place = tmp_path_factory.mktemp("mixed") / "cells"
    dataset = solar_cells("solar_mono")
    for name, label, count in (
        ("train/good", "normal", NUM_TRAIN),
        ("test/crack", "anomalous", NUM_TEST),
    ):
        (place / name).mkdir(parents=True)
        records = [r for r in dataset.records if r.label == label][:count]
        for n, record in enumerate(records):
            height, width = SIZES[n % len(SIZES)]
            with Image.open(Path(dataset.root) / record.path) as image:
                image.crop((0, 0, width, height)).save(place / name / f"{n:03}.png")
    (place / BROKEN).write_bytes(b"no image")
    return place


@pytest.fixture(scope="module")
def trained_once(
    new_database: Callable[..., Database], _template: Database, settings: Settings, folder: Path
) -> tuple[Database, TrainReport]:
    """Ingested, then one training image is cut off; trained."""
    database = new_database(_template)
    assert [path for path, _ in ingest(database, folder, "cells").failed] == [BROKEN]
    damaged = folder / CUT_OFF
    damaged.write_bytes(damaged.read_bytes()[:500])
    return database, train(database, settings, "cells", OPTIONS)


@pytest.fixture
def mixed(clone_of: Any, trained_once: tuple[Database, TrainReport]) -> Iterator[Database]:
    with clone_of(trained_once[0]) as database:
        yield database


def extractor_of(database: Database, settings: Settings) -> Extractor:
    detector = active_detector(database, "cells")
    return Extractor(load_extractor(database, detector.extractor_id, settings.cache_dir))


def patches_of(extractor: Extractor, image: StoredImage) -> Float32:
    """Raw patch embeddings `(rows, cols, dim)` of an image by itself."""
    inputs = extractor.preprocessing.apply(load_image(image.path))
    result: Float32 = extractor(inputs[None])[0]
    return result


def judge(
    database: Database, settings: Settings, images: list[StoredImage], kind: Any
) -> list[Inspection]:
    def on_error(index: int, error: ImageError) -> None:
        raise error

    inspector = Inspector(database, settings, "cells", kind)
    paths = [image.path for image in images]
    return [judged.inspection for batch in inspector.judge(paths, on_error) for _, judged in batch]


def box_of(words: str) -> tuple[int, ...]:
    return tuple(int(word) for word in words.split(","))


def test_the_defaults_keep_the_aspect_ratio_and_even_out_light() -> None:
    assert (TrainOptions().resize, TrainOptions().local_contrast) == ("keep", 0.1)


def test_broken_files_are_left_out_and_the_rest_is_learned(
    mixed: Database, settings: Settings, trained_once: tuple[Database, TrainReport]
) -> None:
    report = trained_once[1]
    assert {Path(path).name for path, _ in report.failed} == {Path(CUT_OFF).name}
    # All that can be read are in the bank, and all of them set the threshold.
    assert report.training_images == report.held_out_images == NUM_TRAIN - 1
    extractor = extractor_of(mixed, settings)
    assert (extractor.preprocessing.resize, extractor.preprocessing.local_contrast) == ("keep", 0.1)
    with mixed.connect() as connection:
        recorded = connection.scalar(
            text("SELECT settings FROM pgdefect.detector WHERE id = :id"),
            {"id": report.detector_id},
        )
    assert (recorded["resize"], recorded["local_contrast"]) == ("keep", 0.1)
    # Every readable image has its embedding, from its own patches.
    for image in images_of(mixed, "cells"):
        stored = image_embeddings_of(mixed, report.extractor_id, [image.id]).get(image.id)
        if image.path.endswith(CUT_OFF):
            assert stored is None
        else:
            assert stored is not None
            expected = image_embeddings(patches_of(extractor, image)[None])[0]
            np.testing.assert_allclose(stored, expected, atol=3e-4)


@pytest.mark.parametrize("size", [*SIZES, (1, 1), (1, 2000), (2000, 1), (33, 2000), (768, 1024)])
def test_the_grid_of_an_image_is_what_the_network_gives(
    mixed: Database, settings: Settings, size: tuple[int, int]
) -> None:
    extractor = extractor_of(mixed, settings)
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    inputs = extractor.preprocessing.apply(pixels)
    rows, cols = extractor.grid_of(size)
    assert extractor(inputs[None]).shape == (1, rows, cols, extractor.artifact.embedding_dim)
    assert (rows * 8, cols * 8) == inputs.shape[1:]


def test_bank_vectors_are_the_patches_they_are_said_to_be(
    mixed: Database, settings: Settings
) -> None:
    bank = active_detector(mixed, "cells").bank
    extractor = extractor_of(mixed, settings)
    vectors = read_bank(mixed, bank)
    image_ids, rows, cols = bank_cells(mixed, bank)
    images = {image.id: image for image in images_of(mixed, "cells", split="train")}
    grids = set()
    for image_id in np.unique(image_ids):
        image = images[int(image_id)]
        grid = extractor.grid_of((image.height, image.width))
        grids.add(grid)
        mine = image_ids == image_id
        assert rows[mine].min() >= 0
        assert cols[mine].min() >= 0
        assert rows[mine].max() < grid[0]
        assert cols[mine].max() < grid[1]
        patches = patches_of(extractor, image)
        assert patches.shape[:2] == grid
        raw = patches[rows[mine], cols[mine]]
        again = as_stored(apply_transform(bank.transform, raw), bank.precision)
        np.testing.assert_allclose(again, vectors[mine], atol=2e-3)
    assert len(grids) > 3
    assert len({rows for rows, _ in grids}) > 1
    assert len({cols for _, cols in grids}) > 1


def test_anomaly_maps_have_the_grid_of_their_image(mixed: Database, settings: Settings) -> None:
    extractor = extractor_of(mixed, settings)
    report = inspect(mixed, settings, "cells", split="test")
    images = {image.id: image for image in images_of(mixed, "cells", split="test")}
    assert len(report.inspections) == len(images) == NUM_TEST
    assert report.failed == ()
    for inspection in report.inspections:
        assert inspection.image_id is not None
        image = images[inspection.image_id]
        grid = extractor.grid_of((image.height, image.width))
        assert inspection.scores.distances.shape == grid
        assert inspection.worst_box == extractor.preprocessing.grid_to_pixels(
            inspection.scores.worst_row,
            inspection.scores.worst_col,
            grid,
            (image.height, image.width),
        )
        laid_over = extractor.preprocessing.map_to_original(
            inspection.scores.distances, (image.height, image.width)
        )
        assert laid_over.shape == (image.height, image.width)
        assert laid_over.min() > 0
    with mixed.connect() as connection:
        stored = connection.execute(
            text(
                "SELECT image_id, array_length(anomaly_map, 1), array_length(anomaly_map, 2), "
                "array_length(nearest_positions, 1), array_length(nearest_positions, 2) "
                "FROM pgdefect.inspection"
            )
        ).all()
    assert {row[0]: tuple(row[1:]) for row in stored} == {
        image.id: 2 * extractor.grid_of((image.height, image.width)) for image in images.values()
    }
    assert len({tuple(row[1:]) for row in stored}) > 3


def test_searches_agree_and_companions_do_not_matter(mixed: Database, settings: Settings) -> None:
    images = images_of(mixed, "cells", split="test")
    exact, hnsw, fast = (
        [i.raw_score for i in judge(mixed, settings, images, kind)]
        for kind in ("exact", "hnsw", "fast")
    )
    np.testing.assert_allclose(hnsw, exact, rtol=1e-4)
    np.testing.assert_allclose(fast, exact, rtol=1e-4)
    alone = [judge(mixed, settings, [image], "exact")[0].raw_score for image in images]
    np.testing.assert_allclose(alone, exact, rtol=1e-3)
    backwards = judge(mixed, settings, images[::-1], "exact")
    assert [i.path for i in backwards] == [image.path for image in images[::-1]]
    np.testing.assert_allclose([i.raw_score for i in backwards], exact[::-1], rtol=1e-3)


def test_similar_images_and_normal_patches_across_sizes(
    mixed: Database, settings: Settings
) -> None:
    extractor = extractor_of(mixed, settings)
    report = inspect(mixed, settings, "cells", split="test")
    sizes = {i.id: (i.height, i.width) for i in images_of(mixed, "cells")}
    checked = 0
    for inspection in report.inspections:
        assert inspection.image_id is not None
        with mixed.connect() as connection:
            found = connection.execute(
                text("SELECT * FROM defect.nearest_normal(inspection => :id)"),
                {"id": inspection.inspection_id},
            ).all()
        assert found
        assert found[0].score == pytest.approx(inspection.scores.distances.max())
        for row in found:
            for image_id, cell, words in (
                (inspection.image_id, (row.row, row.col), row.box),
                (row.normal_image_id, (row.normal_row, row.normal_col), row.normal_box),
            ):
                height, width = sizes[image_id]
                grid = extractor.grid_of((height, width))
                assert 0 <= cell[0] < grid[0]
                assert 0 <= cell[1] < grid[1]
                x, y, box_width, box_height = box_of(words)
                assert 0 <= x < x + box_width <= width
                assert 0 <= y < y + box_height <= height
                # Its own grid's cell, wherever halves of a pixel go.
                middle = x + box_width / 2, y + box_height / 2
                assert middle[0] == pytest.approx((cell[1] + 0.5) * width / grid[1], abs=1)
                assert middle[1] == pytest.approx((cell[0] + 0.5) * height / grid[0], abs=1)
                checked += 1
        similar = search(
            mixed, settings, Query([str(inspection.image_id)]), SearchOptions(k=5, by="picture")
        )
        assert len(similar.neighbors) == 5
    assert checked > 2 * NUM_TEST


@pytest.mark.parametrize(
    "side", [(96, 96), (64, 64), (80, 112), (240, 272), (64, 4096), (336, 64), (176, 208)], ids=str
)
def test_exported_features_equal_torchs_at_any_size(
    mixed: Database, settings: Settings, side: tuple[int, int]
) -> None:
    extractor = extractor_of(mixed, settings)
    backbone = find_backbone("efficientnet_lite0")
    embedder = patchcore.build_embedder(backbone, backbone.layers, extractor.preprocessing, None)
    assert embedder.spec.fingerprint == extractor.artifact.spec.fingerprint
    images = np.random.default_rng(3).integers(0, 256, (2, *side, 3), dtype=np.uint8)
    mean, std = (np.array(v) for v in (extractor.preprocessing.mean, extractor.preprocessing.std))
    inputs = ((images / 255 - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)
    exported, expected = extractor(inputs), embedder.embed(inputs, "cpu")
    assert exported.shape == expected.shape == (2, side[0] // 8, side[1] // 8, 152)
    assert np.linalg.norm(exported - expected) <= 1e-5 * np.linalg.norm(expected)


def test_even_padding_is_gone_after_the_export() -> None:
    import torch

    backbone = find_backbone("efficientnet_lite0")
    settings = Preprocessing((96, 96), resize="keep")
    network = patchcore.build_embedder(backbone, backbone.layers, settings, None).network
    odd = torch.randn(1, 3, 97, 131, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = network(odd)
        with patchcore.even_padding(network):
            within = network(odd[..., :96, :128])
        np.testing.assert_array_equal(network(odd).numpy(), before.numpy())
        expected = network(odd[..., :96, :128])
    np.testing.assert_allclose(within.numpy(), expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18"])
def test_layers_too_coarse_for_every_size_are_refused(name: str, tmp_path: Path) -> None:
    """A patch every 32 pixels, and sides that are multiples of 16: grids would be guesses."""
    import timm
    import torch

    weights = tmp_path / "resnet18.pth" if name == "resnet18" else None
    if weights is not None:
        torch.save(timm.create_model(name, pretrained=False).state_dict(), weights)
    layers = ("layer4",) if name == "resnet18" else ("blocks.6",)
    settings = Preprocessing((96, 96), resize="keep")
    embedder = patchcore.build_embedder(find_backbone(name), layers, settings, weights)
    with pytest.raises(TrainingError, match="resize='stretch'"):
        embedder.export()


def test_images_larger_than_their_rows_say_are_told(
    mixed: Database, settings: Settings, tmp_path: Path
) -> None:
    """There is no room for their patches; nothing changes."""
    before = list_detectors(mixed)
    rng = np.random.default_rng(0)
    with mixed.begin() as connection:
        [root] = connection.execute(
            text("INSERT INTO pgdefect.image_root (path) VALUES (:path) RETURNING id"),
            {"path": str(tmp_path)},
        ).scalars()
        for image in images_of(mixed, "cells", split="train"):
            file = tmp_path / f"{image.id}.png"
            Image.fromarray(rng.integers(0, 256, (300, 300, 3), np.uint8)).save(file)
            # As if ingested at a size of 10 x 14 patches: square ones have 12 x 12.
            connection.execute(
                text(
                    "UPDATE pgdefect.image SET root_id = :root, path = :path, sha256 = :sha256, "
                    "height = 100, width = 141 WHERE id = :id"
                ),
                {"root": root, "path": file.name, "sha256": sha256_of(file), "id": image.id},
            )
    with pytest.raises(TrainingError, match=r"another size.*ingest them again"):
        train(mixed, settings, "cells", OPTIONS)
    assert list_detectors(mixed) == before
    assert not list(settings.cache_dir.glob("training-*"))


def test_export_to_anomalib_is_refused_naming_the_remedy(
    mixed: Database, settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cells.ckpt"
    with pytest.raises(UsageError, match=r"anomalib cannot.*resize='stretch' local_contrast=0"):
        export_anomalib(mixed, settings, "cells", file)
    assert run(["--database-url", mixed.url, "export", "cells", str(file)]) == 2
    assert "--resize stretch --local-contrast 0" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
