"""`pgdefect search`: how a query is named, what is found and drawn."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import psycopg
import pytest
from PIL import Image

from pgdefect.db.connection.engine import Database

from .conftest import TINY, Cli, contents


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

    assert {n["known_label"] for n in found("--label", "anomalous", "-k", "9")} == {"anomalous"}
    assert len(found("--label", "anomalous", "-k", "9")) == 9
    assert len(found("--label", "normal", "-k", "19")) == 19
    assert {n["known_defect_type"] for n in found("--defect-type", "chip", "-k", "3")} == {"chip"}
    assert len(found("--defect-type", "chip", "-k", "3")) == 3
    others = found("--exclude-part", "-k", "18")
    assert len(others) == 18
    assert not [n for n in others if "/train/good/00" in n["path"]]
    assert found("-k", "5", "--exact") == found("-k", "5")
    folded = good(
        trained, "search", parts / "test/chip/000.png", "--by", "picture", "-k", "19", "--json"
    )
    copies = [n["copies"] for n in folded.json["neighbors"] if n["part"] == "G"]
    assert copies == [11]  # ten of the training images and one of the test's


def test_search_across_categories(
    good: Cli, cli: Cli, trained: Database, parts: Path, tmp_path: Path
) -> None:
    shutil.copytree(parts / "test", tmp_path / "twin")
    for path in (tmp_path / "twin").glob("*/*.png"):
        Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    said = [
        word
        for kind in (tmp_path / "twin").iterdir()
        for word in ("--folder", f"{kind.name}=normal")
    ]
    good(trained, "ingest", tmp_path / "twin", "--category", "twin", *said)
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


def test_a_category_tells_images_of_one_name_apart(good: Cli, cli: Cli, trained: Database) -> None:
    with psycopg.connect(trained.url) as connection:
        connection.execute("INSERT INTO pgdefect.category (name) VALUES ('others')")
        connection.execute(
            "INSERT INTO pgdefect.image (category_id, root_id, path, sha256, num_bytes, height, "
            "width, split) SELECT c.id, root_id, path, repeat('0', 64), 1, 1, 1, split "
            "FROM pgdefect.image, pgdefect.category c "
            "WHERE path = 'test/stain/000.png' AND c.name = 'others'"
        )
    assert "2 images are called" in cli(trained, "search", "stain/000.png").error
    found = good(trained, "search", "stain/000.png", "--category", "parts", "--json").json
    assert found["neighbors"]


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
