"""`pgdefect train`: its options and what it prints."""

from __future__ import annotations

import inspect
from dataclasses import asdict
from pathlib import Path

import pytest

from pgdefect.cli import training
from pgdefect.db.connection.engine import Database
from pgdefect.usecases.train.options import TrainOptions

from .conftest import TINY, Cli, contents, named, value

pytestmark = pytest.mark.train


def test_the_memory_bank_has_no_more_vectors_than_asked_for(good: Cli, trained: Database) -> None:
    [report] = good(trained, "train", "parts", *TINY, "--max-vectors", "30", "--json").json
    assert report["bank_vectors"] == 30
    ratio = value(
        trained,
        f"SELECT coreset_ratio FROM defect.banks WHERE bank_id = {report['detector_id']}",
    )
    assert ratio == pytest.approx(30 / (256 * report["training_images"]))


def test_options_left_out_are_those_of_a_call_without_them() -> None:
    defaults = {
        name: option.default
        for name, option in inspect.signature(training.train_command).parameters.items()
    }
    options = asdict(TrainOptions())
    same = defaults.keys() & options.keys() - {
        "layers",
        "layer_weights",
        "image_size",
        "resize",
        "holdout",
    }
    assert len(same) >= 18
    assert {name: defaults[name] for name in same} == {name: options[name] for name in same}


def test_train_prints_one_json_document(good: Cli, trained: Database) -> None:
    result = good(trained, "train", "parts", *TINY, "--coreset-ratio", "0.02", "--json")
    [report] = result.json
    assert report["category"] == "parts"
    assert (report["training_images"], report["held_out_images"]) == (16, 16)
    assert report["bank_vectors"] == round(0.02 * 256 * report["training_images"])
    assert set(report["seconds"]) >= {"extractor", "extract", "coreset", "export"}
    detectors = good(trained, "detectors", "--json").json
    assert named(detectors, "id", report["detector_id"])["active"] is True
    assert named(detectors, "id", 1)["active"] is False
    good(trained, "activate", "--detector", "1")
    assert named(good(trained, "detectors", "--json").json, "id", 1)["active"] is True


def test_train_weighs_layers(good: Cli, trained: Database) -> None:
    weighted = (*TINY, "--coreset-ratio", "0.02", "--layer-weights", "blocks.2 = 1.5")
    good(trained, "train", "parts", *weighted)
    assert value(
        trained,
        "SELECT settings -> 'layer_weights' FROM pgdefect.detector ORDER BY id DESC LIMIT 1",
    ) == {"blocks.2": 1.5}


def test_train_several_ends_with_one_table(
    good: Cli, cli: Cli, trained: Database, parts: Path
) -> None:
    good(trained, "ingest", parts, "--category", "second")
    good(trained, "ingest", parts / "test/good", "--category", "few")  # four images
    table = good(trained, "train", "parts", "second", *TINY).out.splitlines()
    words = [line.split()[0] for line in table if line.strip()]
    start = words.index("category")
    assert words[start : start + 4] == ["category", "--------", "parts", "second"]
    # One that cannot be trained does not cost the others their table.
    result = cli(trained, "train", "--all", *TINY)
    assert result.code == 1
    words = [line.split()[0] for line in result.out.splitlines() if line.strip()]
    start = words.index("category")
    assert words[start : start + 4] == ["category", "--------", "parts", "second"]
    assert "'few' has 4 normal training images" in result.err
    before = contents(trained)
    slip = cli(trained, "train", "parts", "nosuch", *TINY)
    assert (slip.code, contents(trained)) == (1, before)
    assert "no category 'nosuch'; known: few, parts, second" in slip.error
