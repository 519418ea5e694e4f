"""What each command prints and does, when all is well."""

from __future__ import annotations

import csv
import inspect
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from PIL import Image

from pgdefect.cli import training
from pgdefect.db.engine import Database
from pgdefect.pipeline.options import TrainOptions

from .conftest import PROGRAM, Cli, bundled_path, contents, start, value

TINY = ("--image-size", "128")


def named(result: list[dict[str, Any]], key: str, wanted: object) -> dict[str, Any]:
    [found] = [row for row in result if row[key] == wanted]
    return found


# -- ingest ------------------------------------------------------------------------------


def test_ingest_an_mvtec_folder_twice(good: Cli, database: Database, parts: Path) -> None:
    result = good(database, "ingest", parts, "--category", "parts")
    assert (
        result.out
        == "parts: 29 added, 0 unchanged, 0 changed, 0 relabelled, 0 vanished, 0 unreadable\n"
    )
    assert result.err == ""
    before = contents(database)
    again = good(database, "ingest", parts, "--category", "parts")
    assert "0 added, 29 unchanged" in again.out
    assert contents(database) == before
    assert (
        value(
            database,
            "SELECT count(*) FROM pgdefect.image WHERE split = 'test' AND label = 'anomalous' "
            "AND defect_type IN ('scratch', 'stain', 'chip') AND mask_path IS NOT NULL "
            "AND width = 128 AND height = 128 AND length(sha256) = 64",
        )
        == 9
    )


def test_ingest_reports_changed_and_vanished_files(
    good: Cli, database: Database, parts: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(parts / "train" / "good", folder)
    good(database, "ingest", folder, "--category", "p")
    shutil.copy(parts / "test/chip/000.png", folder / "000.png")
    (folder / "001.png").unlink()
    told = good(database, "ingest", folder, "--category", "p")
    assert "0 added, 14 unchanged, 1 changed, 0 relabelled, 1 vanished" in told.out
    assert "changed: 000.png" in told.err
    assert "vanished: 001.png" in told.err
    assert "--accept-changes" in told.err
    [report] = good(database, "ingest", folder, "--category", "p", "--json").json
    assert (report["changed"], report["vanished"]) == (["000.png"], ["001.png"])
    good(database, "ingest", folder, "--category", "p", "--accept-changes")
    settled = good(database, "ingest", folder, "--category", "p").out
    assert "0 changed, 0 relabelled, 0 vanished" in settled
    assert named(good(database, "categories", "--json").json, "name", "p")["images"] == 15


def test_ingest_a_plain_folder(good: Cli, database: Database, parts: Path) -> None:
    good(database, "ingest", parts / "train/good", "--category", "normal")
    good(database, "ingest", parts / "test/chip", "--category", "odd", "--label", "anomalous")
    good(database, "ingest", parts / "test/good", "--category", "open", "--split", "test")
    found = good(database, "categories", "--json").json
    assert named(found, "name", "normal")["train_images"] == 16
    assert named(found, "name", "odd")["anomalous_images"] == 3
    assert named(found, "name", "odd")["train_images"] == 0
    assert named(found, "name", "open")["normal_images"] == 0
    assert named(found, "name", "open")["images"] == 4


def test_ingest_a_manifest(good: Cli, database: Database, parts: Path, tmp_path: Path) -> None:
    shutil.copytree(parts / "test", tmp_path / "shots")
    with open(tmp_path / "list.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "split", "label", "defect type", "group", "line"])
        writer.writerow(["shots/good/000.png", "train", "normal", "", "part 1", "7"])
        writer.writerow(["shots/chip/000.png", "test", "anomalous", "chip", "part 2", "8"])
    good(database, "ingest", tmp_path / "list.csv", "--category", "m")
    with psycopg.connect(database.url) as connection:
        rows = connection.execute(
            "SELECT path, split, label, defect_type, group_name, attributes "
            "FROM pgdefect.image ORDER BY path"
        ).fetchall()
    assert rows == [
        ("shots/chip/000.png", "test", "anomalous", "chip", "part 2", {"line": 8}),
        ("shots/good/000.png", "train", "normal", None, "part 1", {"line": 7}),
    ]


def test_ingest_all_and_groups(good: Cli, database: Database, parts: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        shutil.copytree(parts, tmp_path / name)
    (tmp_path / "one/groups.csv").write_text("path,group\ntest/good/000.png,A\n")
    (tmp_path / "other.csv").write_text("path,group\ntest/good/000.png,B\ntest/good/001.png,B\n")
    reports = good(database, "ingest", tmp_path, "--all", "--json").json
    assert [(r["category"], r["added"]) for r in reports] == [("one", 29), ("two", 29)]
    grouped = "SELECT count(*) FROM pgdefect.image WHERE group_name = %s"
    assert value(database, grouped, "A") == 1
    good(
        database, "ingest", tmp_path / "two", "--category", "three",
        "--groups", tmp_path / "other.csv",
    )  # fmt: skip
    assert value(database, grouped, "B") == 2


def test_ingest_and_inspect_at_once(good: Cli, trained: Database, parts: Path) -> None:
    with psycopg.connect(trained.url) as connection:
        connection.execute("DELETE FROM pgdefect.inspection")
    result = good(trained, "ingest", parts, "--category", "parts", "--inspect")
    assert "inspected 13 test images" in result.err
    assert value(trained, "SELECT count(*) FROM pgdefect.inspection") == 13


# -- what there is -----------------------------------------------------------------------


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
        name: left[name] for name in ("alembic_version", "defect_space", "extractor", "sql_file")
    }
    assert (parts / "train/good/014.png").exists()


def test_move_root(good: Cli, database: Database, parts: Path, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(parts, old)
    good(database, "ingest", old, "--category", "parts")
    old.rename(new)
    assert "29 images" in good(database, "move-root", old, new).out
    again = good(database, "ingest", new, "--category", "parts")
    assert "0 added, 29 unchanged, 0 changed, 0 relabelled, 0 vanished" in again.out


# -- train -------------------------------------------------------------------------------


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
        for name, option in inspect.signature(training.train).parameters.items()
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
    assert [line.split()[0] for line in table] == ["category", "--------", "parts", "second"]
    # One that cannot be trained does not cost the others their table.
    result = cli(trained, "train", "--all", *TINY)
    assert result.code == 1
    assert [line.split()[0] for line in result.out.splitlines()[2:]] == ["parts", "second"]
    assert "'few' has 4 normal training images" in result.err
    before = contents(trained)
    slip = cli(trained, "train", "parts", "nosuch", *TINY)
    assert (slip.code, contents(trained)) == (1, before)
    assert "no category 'nosuch'; known: few, parts, second" in slip.error


# -- inspect -----------------------------------------------------------------------------


def test_inspect_stored_images(good: Cli, trained: Database) -> None:
    result = good(trained, "inspect", "--category", "parts", "--split", "test", "--json")
    rows = result.json["inspections"]
    assert len(rows) == 13
    assert result.json["threshold"] == pytest.approx(
        value(trained, "SELECT threshold FROM pgdefect.detector")
    )
    for row in rows:
        assert (row["verdict"] == "anomalous") == (row["raw_score"] > row["threshold"])
        assert 0 <= row["normalized_score"] <= 1
        x, y, width, height = row["worst_box"]
        assert x + width <= 128
        assert y + height <= 128
    scores = {
        label: [r["raw_score"] for r in rows if r["label"] == label]
        for label in ("normal", "anomalous")
    }
    assert len(scores["anomalous"]) == 9
    assert min(scores["anomalous"]) > max(scores["normal"])
    # The threshold hangs on fifteen images alone.
    caught = [r for r in rows if r["label"] == "anomalous" and r["verdict"] == "anomalous"]
    assert len(caught) >= 8
    assert result.json["failed"] == []
    # Renewed, not doubled.
    assert value(trained, "SELECT count(*) FROM pgdefect.inspection") == 13


def test_inspect_files_folders_and_patterns(good: Cli, trained: Database, parts: Path) -> None:
    def judged(*paths: object) -> list[str]:
        rows = good(trained, "inspect", *paths, "--category", "parts", "--json").json
        return sorted(
            Path(row["path"]).relative_to(parts).as_posix() for row in rows["inspections"]
        )

    chips = [f"test/chip/{n:03d}.png" for n in range(3)]
    assert judged(parts / "test/chip/001.png") == chips[1:2]
    assert judged(parts / "test/chip") == chips
    assert judged(parts / "test/chip/*.png") == chips
    assert judged(parts / "test/chip", parts / "test/*/001.png") == sorted(
        [*chips, "test/good/001.png", "test/scratch/001.png", "test/stain/001.png"]
    )
    # Masks are never taken for images.
    assert len(judged(parts)) == 29


def test_inspect_table(good: Cli, trained: Database, parts: Path) -> None:
    result = good(trained, "inspect", parts / "test/stain", "--category", "parts")
    heading, _, *rows = result.out.splitlines()
    assert heading.startswith("verdict")
    assert len(rows) == 3
    assert all(row.startswith("anomalous") and "stain" in row for row in rows)
    assert result.err == "3 of 3 images are anomalous\n"


def test_inspect_without_storing(good: Cli, trained: Database, parts: Path, tmp_path: Path) -> None:
    Image.open(parts / "test/chip/000.png").rotate(90).save(tmp_path / "new.png")
    before = contents(trained)
    arguments = ("inspect", tmp_path / "new.png", "--category", "parts", "--json")
    [row] = good(trained, *arguments, "--no-store").json["inspections"]
    assert row["inspection_id"] is None
    assert contents(trained) == before
    [stored] = good(trained, *arguments).json["inspections"]
    assert stored["raw_score"] == pytest.approx(row["raw_score"])
    assert contents(trained)["inspection"] == before["inspection"] + 1
    assert (
        value(trained, "SELECT split FROM pgdefect.image WHERE id = %s", stored["image_id"])
        == "production"
    )


def test_inspect_draws_anomaly_maps_with_the_ground_truth_where_it_is_known(
    good: Cli, trained: Database, parts: Path, tmp_path: Path
) -> None:
    maps = tmp_path / "deep" / "maps"
    good(
        trained, "inspect", parts / "test/chip", parts / "test/good/000.png", "--category", "parts",
        "--save-maps", maps,
    )  # fmt: skip
    sizes = {}
    for path in maps.iterdir():
        with Image.open(path) as picture:
            picture.load()
            sizes[path.name] = picture.size
    assert set(sizes) == {"chip_000.png", "chip_001.png", "chip_002.png", "good_000.png"}
    # Picture and overlay beside each other, and a third pane where a mask is known.
    assert sizes["chip_000.png"][0] > 1.3 * sizes["good_000.png"][0]
    pixels = np.asarray(Image.open(maps / "chip_000.png").convert("RGB")).astype(int)
    assert pixels.std() > 10


# -- search ------------------------------------------------------------------------------


def test_search_names_the_query_in_every_way(good: Cli, trained: Database, parts: Path) -> None:
    path = parts / "test/scratch/001.png"
    with psycopg.connect(trained.url) as connection:
        row = connection.execute(
            "SELECT id, sha256 FROM pgdefect.image WHERE path = 'test/scratch/001.png'"
        ).fetchone()
    assert row is not None
    answers = [
        good(trained, "search", word, "-k", "5", "--json").json
        for word in (path, row[0], "scratch/001.png", row[1][:10])
    ]
    assert all(answer == answers[0] for answer in answers[1:])
    assert answers[0]["query"]["image_id"] == row[0]
    assert answers[0]["query"]["path"] == str(path)


def test_search_ranks_by_distance_and_leaves_the_query_out(
    good: Cli, trained: Database, parts: Path, tmp_path: Path
) -> None:
    copy = shutil.copy(parts / "test/scratch/001.png", tmp_path / "copy.png")
    by_picture = ("search", copy, "--by", "picture", "--json")
    neighbors = good(trained, *by_picture, "-k", "100").json["neighbors"]
    assert len(neighbors) == 28  # all but itself, found by its content
    assert [n["rank"] for n in neighbors] == list(range(1, 29))
    distances = [n["distance"] for n in neighbors]
    assert distances == sorted(distances)
    assert all(n["similarity"] == pytest.approx(1 - n["distance"]) for n in neighbors)
    assert str(parts / "test/scratch/001.png") not in {n["path"] for n in neighbors}
    assert len(good(trained, *by_picture).json["neighbors"]) == 10
    found = good(trained, "search", copy, "-k", "100", "--json").json
    assert found["by"] == "defect"
    assert found["regions"]
    assert len(found["neighbors"]) == 8  # the other anomalous images
    assert all(n["region"]["box"] for n in found["neighbors"])


def test_search_says_first_that_the_query_is_anomalous(
    good: Cli, trained: Database, parts: Path
) -> None:
    anomalous = good(trained, "search", parts / "test/stain/000.png", "-k", "3").out.splitlines()
    assert re.match(r"ANOMALOUS: .*stain/000.png \(parts\), score 0\.\d+, raw ", anomalous[0])
    assert anomalous[1].startswith("probably ")
    assert anomalous[2].split()[:4] == ["rank", "distance", "by", "defect"]
    assert len(anomalous) == 2 + 2 + 3
    normal = good(trained, "search", parts / "test/good/000.png", "-k", "3").out
    assert normal.startswith("NORMAL: ")


def test_search_filters_and_always_k_rows(good: Cli, trained: Database, parts: Path) -> None:
    with psycopg.connect(trained.url) as connection:
        connection.execute(
            "UPDATE pgdefect.image SET group_name = 'G' WHERE path LIKE 'train/good/00%' "
            "OR path = 'test/good/000.png'"
        )

    def found(*arguments: object) -> list[dict[str, Any]]:
        query = ("search", parts / "test/good/000.png", "--json", "--all", *arguments)
        answer: list[dict[str, Any]] = good(trained, *query).json["neighbors"]
        return answer

    assert {n["label"] for n in found("--label", "anomalous", "-k", "9")} == {"anomalous"}
    assert len(found("--label", "anomalous", "-k", "9")) == 9
    assert len(found("--label", "normal", "-k", "19")) == 19
    assert {n["defect_type"] for n in found("--defect-type", "chip", "-k", "3")} == {"chip"}
    assert len(found("--defect-type", "chip", "-k", "3")) == 3
    others = found("--exclude-group", "-k", "18")
    assert len(others) == 18
    assert not [n for n in others if "/train/good/00" in n["path"]]
    assert found("-k", "5", "--exact") == found("-k", "5")
    folded = good(
        trained, "search", parts / "test/chip/000.png", "--by", "picture", "-k", "19", "--json"
    )
    copies = [n["copies"] for n in folded.json["neighbors"] if n["group"] == "G"]
    assert copies == [11]  # ten of the training images and one of the test's


def test_search_across_categories(
    good: Cli, cli: Cli, trained: Database, parts: Path, tmp_path: Path
) -> None:
    shutil.copytree(parts / "test", tmp_path / "twin")
    for path in (tmp_path / "twin").glob("*/*.png"):
        Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    good(trained, "ingest", tmp_path / "twin", "--category", "twin")
    good(trained, "train", "twin", *TINY)
    query = ("search", parts / "test/good/000.png", "-k", "40", "--json")
    assert {n["category"] for n in good(trained, *query).json["neighbors"]} == {"parts"}
    mixed = good(trained, *query, "--all-categories").json["neighbors"]
    assert {n["category"] for n in mixed} == {"parts", "twin"}
    assert len(mixed) == 40

    # A file nobody has seen: with two categories it must be said which it is of.
    Image.open(parts / "test/good/000.png").rotate(180).save(tmp_path / "new.png")
    unsaid = cli(trained, "search", tmp_path / "new.png")
    assert unsaid.code == 2
    assert "--category" in unsaid.error
    assert "known: parts, twin" in unsaid.error
    said = good(trained, "search", tmp_path / "new.png", "--category", "twin", "--json").json
    assert {n["category"] for n in said["neighbors"]} == {"twin"}


def test_search_for_an_unknown_file_in_the_only_category(
    good: Cli, trained: Database, parts: Path, tmp_path: Path
) -> None:
    Image.open(parts / "test/good/000.png").rotate(180).save(tmp_path / "new.png")
    before = contents(trained)
    answer = good(trained, "search", tmp_path / "new.png", "-k", "29", "--json").json
    assert len(answer["neighbors"]) == 29
    assert answer["query"]["image_id"] is None
    assert contents(trained) == before


def test_search_draws_a_contact_sheet(
    good: Cli, trained: Database, parts: Path, tmp_path: Path
) -> None:
    sheet = tmp_path / "sheet.png"
    result = good(trained, "search", parts / "test/chip/000.png", "--sheet", sheet)
    assert str(sheet) in result.err
    with Image.open(sheet) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 300


def test_search_for_a_memory_bank_vector(good: Cli, trained: Database) -> None:
    rows = good(trained, "search", "--patch", "1:7", "--json").json
    assert [row["rank"] for row in rows] == list(range(1, 11))
    assert rows[0]["position"] == 7
    assert rows[0]["similarity"] == pytest.approx(1, abs=1e-6)
    similarities = [row["similarity"] for row in rows]
    assert similarities == sorted(similarities, reverse=True)
    with psycopg.connect(trained.url) as connection:
        in_sql = connection.execute(
            "SELECT nearest_position, similarity, path, row, col "
            "FROM defect.similar_patches(1, 7, 10) ORDER BY rank"
        ).fetchall()
    assert [(r["position"], r["similarity"], r["path"], r["row"], r["col"]) for r in rows] == in_sql
    assert len(good(trained, "search", "--patch", "1:7", "-k", "3").out.splitlines()) == 5


# -- db ----------------------------------------------------------------------------------


def test_db_upgrade_and_check(good: Cli, cli: Cli, empty_database: Database) -> None:
    before = cli(empty_database, "db", "check")
    assert before.code == 1
    assert "pgdefect db upgrade" in before.err
    report = good(empty_database, "db", "upgrade", "--json").json
    assert report["revision_before"] is None
    assert len(report["sql_files"]) >= 10
    assert good(empty_database, "db", "check", "--json").json["differences"] == []
    assert good(empty_database, "db", "upgrade").out.startswith("up to date")
    with psycopg.connect(empty_database.url) as connection:
        connection.execute("DROP FUNCTION defect.find_image(text) CASCADE")
    broken = cli(empty_database, "db", "check")
    assert broken.code == 1
    assert "defect.find_image is missing" in broken.out
    with psycopg.connect(empty_database.url) as connection:
        connection.execute("DROP INDEX pgdefect.ix_image_created_at")
    assert "built: ix_image_created_at\n" in good(empty_database, "db", "upgrade").out


def test_db_status_and_url_of_the_embedded_server(
    good: Cli, server: Any, trained: Database
) -> None:
    there = ("--data-dir", server.data_dir, "db")
    status = good(None, *there, "status", "--json").json
    assert status["running"] is True
    assert status["data_dir"] == str(server.data_dir)
    assert (
        f"process {status['pid']}" in good(None, "--data-dir", server.data_dir, "db", "status").out
    )
    url = good(None, "--data-dir", server.data_dir, "db", "url").out.strip()
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert good(trained, "db", "url").out.strip() == trained.url


def test_db_url_hides_the_password(good: Cli, cli: Cli, trained: Database) -> None:
    secret = Database(trained.url.replace("pgdefect@", "pgdefect:s3cret@"))
    assert "s3cret" not in good(secret, "db", "url").out
    assert "s3cret" in good(secret, "db", "url", "--password").out
    refused = cli(secret, "db", "up")
    assert refused.code == 2
    assert "s3cret" not in refused.err


def test_db_psql_and_db_url_keep_the_password_out_of_sight(tmp_path: Path) -> None:
    """Of process lists, that is; psql is given it in its environment."""
    psql = tmp_path / "psql"
    psql.write_text('#!/bin/sh\ntr "\\0" " " < /proc/$$/cmdline\necho "password=$PGPASSWORD"\n')
    psql.chmod(0o755)
    code = (
        "import sys; from unittest.mock import patch; from pgdefect.cli.main import main\n"
        "with patch('pgdefect.db.schema.require_current'): main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, "db"]
    secret = "postgresql://u:hunter2@127.0.0.1:1/d?sslpassword=hunter3"
    environment = {
        **os.environ,
        "PGDEFECT_DATABASE_URL": secret,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
    }

    def run(*words: str) -> str:
        done = subprocess.run([*command, *words], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    arguments, _, password = run("psql").partition("password=")
    assert "postgresql://u@127.0.0.1:1/d" in arguments
    assert "hunter" not in arguments
    assert password.strip() == "hunter2"
    assert run("url").strip() == "postgresql://u@127.0.0.1:1/d"
    assert run("url", "--password").strip() == secret


def test_db_psql_passes_arguments_on(trained: Database) -> None:
    def psql(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PROGRAM, "--database-url", trained.url, "db", "psql", "--", *arguments],
            env={**os.environ, "PATH": bundled_path()},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    done = psql("-At", "-c", "SELECT category, images FROM defect.categories")
    assert (done.returncode, done.stdout) == (0, "parts|29\n"), done.stderr
    assert psql("-v", "ON_ERROR_STOP=1", "-c", "SELECT nonsense").returncode == 1


# -- how it prints -----------------------------------------------------------------------


def test_progress_is_drawn_on_a_terminal_only(trained: Database, parts: Path) -> None:
    """Stdout stays one JSON document while stderr shows bars, with rate and time left."""
    arguments = (trained, "inspect", "--category", "parts", "--json")
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [PROGRAM, "--database-url", trained.url, *arguments[1:]],
        stdout=subprocess.PIPE,
        stderr=slave,
        text=True,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(slave)
    shown = b""
    try:
        while block := os.read(master, 65536):
            shown += block
    except OSError:  # Linux's end of file on a terminal
        pass
    os.close(master)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert len(json.loads(out)["inspections"]) == 29
    assert "Inspecting" in shown.decode()
    assert "29/29" in shown.decode()

    with start(*arguments) as piped:
        out, err = piped.communicate(timeout=60)
    assert len(json.loads(out)["inspections"]) == 29
    assert err == ""


def test_a_reader_that_goes_away_is_no_error(trained: Database) -> None:
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; '{PROGRAM}' backbones | head -c 1 >/dev/null; echo $?"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    # The note on stderr comes or not, as the reader is slower or faster.
    assert not done.stderr or done.stderr.startswith("Any other timm network")
    assert done.stdout.strip() in ("0", "1", "141")


# -- demo --------------------------------------------------------------------------------


@pytest.fixture
def small_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dozen solar cells each, at the size of the trained template."""
    from pgdefect.pipeline import demo, train

    monkeypatch.setattr(demo, "TRAIN_IMAGES", 12)
    monkeypatch.setattr(demo, "TEST_NORMAL", 4)
    monkeypatch.setattr(demo, "TEST_ANOMALOUS", 6)
    options: Callable[..., Any] = train.TrainOptions
    monkeypatch.setattr(demo, "TrainOptions", lambda **kw: options(image_size=(128, 128), **kw))


def test_demo(
    small_demo: None, good: Cli, trained: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [PROGRAM])
    began = time.perf_counter()
    result = good(trained, "demo", "--json", "--output", tmp_path / "out").json
    elapsed = time.perf_counter() - began
    assert set(result) >= {"categories", "query", "neighbors", "contact_sheet", "queries", "psql"}
    assert [c["category"] for c in result["categories"]] == ["solar_mono", "solar_poly"]
    for category in result["categories"]:
        assert 0.4 <= category["image_auroc"] <= 1
        assert (category["training_images"], category["held_out_images"]) == (12, 12)
        assert (category["test_normal"], category["test_anomalous"]) == (4, 6)
        assert sum(category["seconds"].values()) < elapsed
    assert result["by"] == "defect"
    assert 0 < len(result["neighbors"]) <= 10
    assert {n["category"] for n in result["neighbors"]} == {"solar_mono"}
    assert result["query"]["label"] == "anomalous"
    with Image.open(result["contact_sheet"]) as sheet:
        sheet.load()
    assert len(result["queries"]) == 3
    with psycopg.connect(trained.url) as connection:
        answers = [connection.execute(query).fetchall() for query in result["queries"]]
    assert {row[0] for row in answers[0]} == {"parts", "solar_mono", "solar_poly"}
    assert len(answers[1]) <= 5
    # The same ten images that the command listed.
    assert [row[3] for row in answers[2]] == [n["path"] for n in result["neighbors"]]
    printed = subprocess.run(
        ["bash", "-c", f"{result['psql']} -- -At -c 'SELECT 1'"],
        env={**os.environ, "PATH": bundled_path()},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert printed.stdout == "1\n", printed.stderr

    # Again, for people: it replaces its detectors and prints all of it.
    monkeypatch.chdir(tmp_path)
    # The same package in another virtual environment: no image is there twice.
    root = value(trained, "SELECT path FROM pgdefect.image_root WHERE path ~ '/elpv_dataset/data$'")
    (elsewhere := tmp_path / "elpv_dataset" / "data").mkdir(parents=True)
    good(trained, "move-root", root, elsewhere)
    images = value(trained, "SELECT count(*) FROM pgdefect.image")
    text = good(trained, "demo").out
    assert value(trained, "SELECT count(*) FROM pgdefect.image") == images
    roots = value(trained, "SELECT array_agg(path) FROM pgdefect.image_root")
    assert root in roots
    assert str(elsewhere) not in roots
    for part in ("image AUROC", "Seconds per stage", "ANOMALOUS: ", "worst patch", "rank"):
        assert part in text
    assert str(tmp_path / "pgdefect-demo" / "contact_sheet.png") in text
    for query in re.findall(r"^  (SELECT .*;)$", text, re.MULTILINE):
        with psycopg.connect(trained.url) as connection:
            connection.execute(query)
    assert len(good(trained, "detectors", "--category", "solar_mono", "--json").json) == 1


RANDOM_EMBEDDINGS = """
SELECT setseed(0.5);
DELETE FROM pgdefect.image_embedding;
WITH made AS (
    INSERT INTO pgdefect.image
        (category_id, root_id, path, sha256, num_bytes, height, width, split)
    SELECT 1, 1, n || '.png', encode(sha256(n::text::bytea), 'hex'), 1, 64, 64, 'production'
    FROM generate_series(1, 1500) n RETURNING id
)
INSERT INTO pgdefect.image_embedding (extractor_id, image_id, embedding)
SELECT 1, m.id, array_agg(random() - 0.5)::halfvec
FROM made m, pgdefect.extractor x, generate_series(1, x.embedding_dim) GROUP BY m.id;
INSERT INTO pgdefect.search_setting VALUES (1, 'picture', 10, 0.5);
"""


def test_recall_check(cli: Cli, trained: Database) -> None:
    with psycopg.connect(trained.url, autocommit=True) as connection:
        connection.execute(RANDOM_EMBEDDINGS)
        # Else autovacuum may do it between two checks, and mends the graph in doing so.
        connection.execute("VACUUM pgdefect.image_embedding")
    poor = cli(trained, "recall-check", "parts", "--json", "--sample", "40")
    assert poor.code == 1
    bank, pictures = poor.json["indexes"][:2]
    assert (bank["searched"], bank["k"], bank["ok"]) == ("bank", 1, True)
    assert (pictures["searched"], pictures["k"], pictures["ok"]) == ("picture", 10, False)
    assert pictures["recall"] < 0.99
    assert pictures["ef_search"] == 10 < pictures["ef_needed"]
    told = cli(trained, "recall-check", "parts", "--sample", "40")
    assert told.code == 1
    assert f"image_embedding_1_hnsw finds {pictures['recall']:.4f} of the nearest" in told.err
    assert "pgdefect recall-check --fix" in told.err
    fixed = cli(trained, "recall-check", "parts", "--sample", "40", "--fix")
    assert fixed.code == 0
    assert f"ef_search was 10, is {pictures['ef_needed']}" in fixed.err
    assert cli(trained, "recall-check", "parts", "--sample", "40").code == 0
