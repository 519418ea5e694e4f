"""`pgdefect ingest`: data sets, plain folders and manifests become rows."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import psycopg

from pgdefect.db.connection.engine import Database

from .conftest import Cli, contents, named, value


def test_ingest_an_mvtec_folder_twice(good: Cli, database: Database, parts: Path) -> None:
    result = good(database, "ingest", parts, "--category", "parts")
    assert result.out.endswith(
        "\n\nparts: 29 added, 0 unchanged, 0 changed, 0 relabeled, 0 vanished, 0 unreadable\n"
    )
    assert "ground_truth/chip     masks                          3" in result.out
    assert "train/good            normal, train                 16" in result.out
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
    assert "0 added, 14 unchanged, 1 changed, 0 relabeled, 1 vanished" in told.out
    assert "changed: 000.png" in told.err
    assert "vanished: 001.png" in told.err
    assert "--accept-changes" in told.err
    [report] = good(database, "ingest", folder, "--category", "p", "--json").json
    assert (report["changed"], report["vanished"]) == (["000.png"], ["001.png"])
    good(database, "ingest", folder, "--category", "p", "--accept-changes")
    settled = good(database, "ingest", folder, "--category", "p").out
    assert "0 changed, 0 relabeled, 0 vanished" in settled
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
        "--parts", tmp_path / "other.csv",
    )  # fmt: skip
    assert value(database, grouped, "B") == 2


def test_ingest_and_inspect_at_once(good: Cli, trained: Database, parts: Path) -> None:
    with psycopg.connect(trained.url) as connection:
        connection.execute("DELETE FROM pgdefect.inspection")
    result = good(trained, "ingest", parts, "--category", "parts", "--inspect")
    assert "inspected 13 test images" in result.err
    assert value(trained, "SELECT count(*) FROM pgdefect.inspection") == 13


def test_what_folders_are_taken_as_is_shown_and_a_dry_run_stops_there(
    good: Cli, cli: Cli, database: Database, parts: Path, tmp_path: Path
) -> None:
    for source, target in (
        ("train/good", "OK"),
        ("test/scratch", "crack"),
        ("ground_truth/scratch", "mask/crack"),
    ):
        shutil.copytree(parts / source, tmp_path / "data" / target)
    (tmp_path / "data/notes.txt").touch()
    told = good(database, "ingest", tmp_path / "data", "--category", "p", "--dry-run")
    assert [line.split("  ")[0] for line in told.out.splitlines()[3:6]] == [
        "OK",
        "crack",
        "mask/crack",
    ]
    assert told.out.endswith("p: 19 images; nothing was stored\n")
    assert "left out: 1 .txt file: no image" in told.err
    assert value(database, "SELECT count(*) FROM pgdefect.category") == 0
    [report] = good(
        database, "ingest", tmp_path / "data", "--category", "p", "--dry-run", "--json"
    ).json
    assert report["dry_run"]
    assert report["skipped"] == [{"suffix": ".txt", "reason": "no image", "count": 1}]
    assert {"folder": "OK", "taken_as": "normal, train", "count": 16, "why": ""} in report[
        "folders"
    ]
    stored = good(database, "ingest", tmp_path / "data", "--category", "p")
    assert "p: 19 added" in stored.out
    (tmp_path / "data/OK").rename(tmp_path / "data/Negative")
    (tmp_path / "data/crack").rename(tmp_path / "data/Positive")
    refused = cli(database, "ingest", tmp_path / "data", "--category", "q")
    assert refused.code == 1
    assert "can be read in two ways" in refused.error
    said = ("--folder", "Negative=normal", "--folder", "positive=anomalous")
    done = good(database, "ingest", tmp_path / "data", "--category", "q", *said)
    assert "q: 19 added" in done.out
    wrong = cli(database, "ingest", tmp_path / "data", "--category", "q", "--folder", "Positive")
    assert "--folder is NAME=MEANING" in wrong.error
