"""What there is, put out of use and deleted: `categories`, `detectors`, `backbones`, `delete`."""

from __future__ import annotations

import shutil
from pathlib import Path

from pgdefect.db.connection.engine import Database

from .conftest import Cli, contents, named


def test_categories_and_detectors(good: Cli, trained: Database) -> None:
    table = good(trained, "categories").out.splitlines()
    assert table[0].split() == (
        [
            "category",
            "images",
            "train",
            "normal",
            "anomalous",
            "inspected",
            "rejected",
            "detector",
            "threshold",
        ]
    )
    assert table[2].split()[:5] == ["parts", "29", "16", "20", "9"]
    [category] = good(trained, "categories", "--json").json
    assert category["name"] == "parts"
    assert category["detector_id"] == 1
    for arguments in ((), ("--category", "parts")):
        [detector] = good(trained, "detectors", *arguments, "--json").json
        assert (detector["id"], detector["category"], detector["active"]) == (1, "parts", True)
        assert "active" in good(trained, "detectors", *arguments).out


def test_an_empty_database_says_how_to_begin(good: Cli, database: Database) -> None:
    result = good(database, "categories")
    assert "pgdefect ingest PATH --category NAME" in result.err
    assert good(database, "categories", "--json").json == []


def test_backbones(good: Cli) -> None:
    rows = good(None, "backbones", "--json").json
    assert named(rows, "backbone", "efficientnet_lite0")["offline"] is True
    assert named(rows, "backbone", "efficientnet_lite0")["layer_weights"] == "blocks.2=1.5"
    assert named(rows, "backbone", "resnet18")["layer_weights"] is None
    assert named(rows, "backbone", "wide_resnet50_2")["offline"] is False
    assert "efficientnet_lite0 (default)" in good(None, "backbones").out


def test_retire_activate_and_delete(good: Cli, cli: Cli, trained: Database, parts: Path) -> None:
    query = ("search", parts / "test/good/000.png", "-k", "28", "--json")
    assert len(good(trained, *query).json["neighbors"]) == 28

    good(trained, "retire", "--image", "train/good/000.png")
    paths = [n["path"] for n in good(trained, *query).json["neighbors"]]
    assert len(paths) == 27
    assert str(parts / "train/good/000.png") not in paths
    good(trained, "activate", "--image", "train/good/000.png")
    assert len(good(trained, *query).json["neighbors"]) == 28

    good(trained, "retire", "--category", "parts")
    assert "parts (retired)" in good(trained, "categories").out
    good(trained, "activate", "--category", "parts")

    good(trained, "retire", "--detector", "1")
    assert "pgdefect train parts" in cli(trained, *query).error
    good(trained, "activate", "--detector", "1")

    before = contents(trained)
    preview = good(trained, "delete", "--category", "parts")
    assert "would delete category parts: 29 images, 1 detectors" in preview.out
    assert "--yes" in preview.err
    assert contents(trained) == before
    assert good(trained, "delete", "--detector", "1", "--json").json["deleted"] is False

    blocked = cli(trained, "delete", "--image", "train/good/014.png", "--yes")
    assert blocked.code == 1
    assert "memory bank 1" in blocked.error
    good(trained, "delete", "--image", "test/chip/000.png", "--yes")
    assert named(good(trained, "categories", "--json").json, "name", "parts")["images"] == 28
    good(trained, "delete", "--detector", "1", "--yes")
    assert good(trained, "detectors", "--json").json == []
    assert "memory_bank_patch_1" not in contents(trained)
    good(trained, "delete", "--category", "parts", "--yes")
    left = contents(trained)
    assert {name: n for name, n in left.items() if n and name in before} == {
        name: left[name]
        for name in (
            *("alembic_version", "audit", "audit_head"),
            *("defect_space", "extractor", "sql_file"),
        )
    }
    assert (parts / "train/good/014.png").exists()


def test_move_root(good: Cli, database: Database, parts: Path, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(parts, old)
    good(database, "ingest", old, "--category", "parts")
    old.rename(new)
    assert "29 images" in good(database, "move-root", old, new).out
    again = good(database, "ingest", new, "--category", "parts")
    assert "0 added, 29 unchanged, 0 changed, 0 relabeled, 0 vanished" in again.out
