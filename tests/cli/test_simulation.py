"""Simulated defects: drawn, recorded, inspected, removed, and in no report that did not ask."""

from __future__ import annotations

import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import psycopg
import pytest
from PIL import Image

from pgdefect.core.config import Settings
from pgdefect.core.errors import DatabaseError
from pgdefect.db.connection.engine import Database
from pgdefect.db.records.catalog import NewImage, add_images, ensure_root
from pgdefect.db.search.queries import find_image, images_of, nearest_normal
from pgdefect.db.search.search import SearchFilter, nearest
from pgdefect.usecases.simulate import draw_simulated
from pgdefect.usecases.simulate.simulate import simulate

from .conftest import Cli, contents, value

Rows = list[tuple[object, ...]]
VIEWS = ("defect.images", "defect.inspections", "defect.categories", "defect.banks")


def query(database: Database, statement: str, *parameters: object) -> Rows:
    with psycopg.connect(database.url) as connection:
        return connection.execute(statement, parameters).fetchall()


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def drawn(good: Cli, trained: Database, tmp_path: Path) -> Path:
    """The folder of 12 simulated defects of ``parts``, one of each kind and size."""
    folder = tmp_path / "drawn"
    good(trained, "simulate", "parts", "--count", 12, "--output", folder)
    return folder


# -- simulating ------------------------------------------------------------------------------


def test_simulate_draws_records_and_inspects(good: Cli, trained: Database, tmp_path: Path) -> None:
    folder, sheet = tmp_path / "drawn", tmp_path / "sheet.png"
    result = good(
        trained, "simulate", "parts", "--count", 36, "--seed", 3, "--output", folder,
        "--sheet", sheet, "--json",
    )  # fmt: skip
    report = result.json
    assert (report["added"], report["sources"], report["failed"]) == (36, {"test": 4}, [])
    rates = {(rate["by"], rate["value"]): rate for rate in report["rates"]}
    assert rates["all", ""]["images"] == 36
    assert {rates["kind", k]["images"] for k in ("cut_paste", "perlin", "scratch", "spot")} == {9}
    assert {rates["size", s]["images"] for s in ("small", "medium", "large")} == {12}
    for by in ("kind", "size", "contrast"):
        parts = [rate for (group, _), rate in rates.items() if group == by]
        for count in ("images", "detected", "in_place"):
            assert sum(part[count] for part in parts) == rates["all", ""][count]
    # Two percent of a part's area at sixty gray levels: nothing could be plainer.
    plain = [i for i in report["images"] if (i["size"], i["contrast"]) == ("large", "high")]
    assert len(plain) == 4
    assert all(image["detected"] and image["in_place"] for image in plain)
    assert report["unaltered"]["images"] == 4
    assert len(report["kind_and_size"]) == 12
    for kind, found in report["smallest_found"].items():
        assert list(found) == ["all", "low", "medium", "high"], kind
        assert found["high"] is not None
    with Image.open(sheet) as picture:
        assert picture.width > 1000

    rows = query(
        trained,
        "SELECT i.simulation, i.split, i.label, i.defect_type, i.group_name, s.path, i.path, "
        "i.mask_path FROM pgdefect.image i JOIN pgdefect.image s "
        "ON s.id = (i.simulation->>'source_image_id')::bigint WHERE i.split = 'simulated'",
    )
    assert len(rows) == 36
    for simulation, split, label, defect_type, group, source, path, mask_path in rows:
        assert (split, label, defect_type) == ("simulated", "anomalous", simulation["kind"])
        assert source.startswith("test/good/")
        assert group == f"image-{simulation['source_image_id']}"
        assert simulation["seed"] == 3
        original = np.asarray(Image.open(place_of(trained, source)).convert("RGB"), dtype=int)
        altered = np.asarray(Image.open(folder / path).convert("RGB"), dtype=int)
        mask = np.asarray(Image.open(folder / mask_path)) == 255
        assert not (altered != original).any(axis=2)[~mask].any()
        assert simulation["area"] == pytest.approx(mask.mean(), abs=1e-6)
        change = np.abs((altered - original) @ [0.299, 0.587, 0.114])[mask].mean()
        assert simulation["gray_difference"] == pytest.approx(change, abs=0.01)
    assert value(trained, "SELECT count(*) FROM defect.simulated WHERE verdict IS NOT NULL") == 36


def place_of(database: Database, path: str) -> str:
    return str(
        value(
            database,
            "SELECT r.path || '/' || i.path FROM pgdefect.image i "
            "JOIN pgdefect.image_root r ON r.id = i.root_id WHERE i.path = %s",
            path,
        )
    )


def test_the_tables_are_printed(good: Cli, trained: Database, tmp_path: Path) -> None:
    result = good(trained, "simulate", "parts", "--count", 12, "--output", tmp_path / "drawn")
    assert "parts: 12 simulated defects (12 new), seed 0, drawn on 4 normal test im" in result.out
    assert "90% from  at low  at medium  at high" in result.out
    assert "of 4 rejected." in result.out
    for word in ("cut_paste", "perlin", "scratch", "spot", "small", "medium", "large", "low"):
        assert word in result.out


def test_the_same_again_adds_nothing_and_more_adds_the_rest(
    good: Cli, trained: Database, drawn: Path
) -> None:
    before, written = contents(trained), files(drawn)
    again = good(trained, "simulate", "parts", "--count", 12)
    assert "12 simulated defects (0 new)" in again.out
    assert contents(trained) == before
    assert files(drawn) == written
    more = good(trained, "simulate", "parts", "--count", 18, "--json").json
    assert (more["added"], more["folder"]) == (6, str(drawn))
    other = good(trained, "simulate", "parts", "--count", 4, "--kind", "spot", "--json").json
    assert {image["kind"] for image in other["images"]} == {"spot"}
    assert files(drawn).items() >= written.items()


def test_removed_and_drawn_again_they_are_the_same_bytes(
    good: Cli, trained: Database, drawn: Path, tmp_path: Path
) -> None:
    written = files(drawn)
    good(trained, "simulate", "parts", "--remove", "--yes")
    assert not drawn.exists()
    good(trained, "simulate", "parts", "--count", 12, "--output", tmp_path / "again")
    assert files(tmp_path / "again") == written


def test_without_a_place_the_images_go_to_the_data_directory(
    trained: Database, tmp_path: Path
) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    with psycopg.connect(trained.url) as connection:
        connection.execute("UPDATE pgdefect.category SET name = '../p/ö'")
    report = simulate(trained, settings, "../p/ö", count=1)
    assert Path(report.folder).parent == tmp_path / "data" / "simulated"
    assert Path(report.images[0].path).exists()


def test_without_test_images_those_held_out_are_altered(
    good: Cli, trained: Database, tmp_path: Path
) -> None:
    held_out = value(trained, "SELECT count(*) FROM pgdefect.holdout_score")
    with psycopg.connect(trained.url) as connection:
        connection.execute("UPDATE pgdefect.image SET retired_at = now() WHERE split = 'test'")
    report = good(
        trained, "simulate", "parts", "--count", 12, "--output", tmp_path / "a", "--json"
    ).json
    assert report["sources"] == {"held_out": min(held_out, 12)}
    # Judged by the scores that set the threshold, of which it is the largest.
    assert report["unaltered"] == {"images": min(held_out, 12), "rejected": 0}
    with psycopg.connect(trained.url) as connection:
        connection.execute("DELETE FROM pgdefect.holdout_score")
    result = good(
        trained, "simulate", "parts", "--count", 4, "--seed", 1, "--output", tmp_path / "a"
    )
    assert "normal training images" in result.out
    assert "may be in the memory bank" in result.err
    assert "unaltered" not in result.out


# -- removing --------------------------------------------------------------------------------


def test_remove_asks_and_then_takes_rows_and_files(
    good: Cli, cli: Cli, trained: Database, drawn: Path
) -> None:
    before = contents(trained)
    foreign = drawn / "spot" / "mine.png"
    shutil.copy(next((drawn / "spot").glob("*.png")), foreign)
    told = good(trained, "simulate", "parts", "--remove")
    assert "would delete simulated defects of parts: 12 images, 12 inspections" in told.out
    assert "--yes" in told.err
    assert contents(trained) == before
    done = good(trained, "simulate", "parts", "--remove", "--yes", "--json").json
    assert (done["deleted"], done["preview"]["images"]) == (True, 12)
    assert list(files(drawn)) == ["spot/mine.png"]
    after = contents(trained)
    assert before["image"] - after["image"] == 12
    assert before["inspection"] - after["inspection"] == 12
    assert before["image_root"] - after["image_root"] == 1
    assert "nothing depends on it" in good(trained, "simulate", "parts", "--remove", "--yes").out


# -- what fails ------------------------------------------------------------------------------


def test_what_fails_leaves_neither_rows_nor_files(
    cli: Cli, trained: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, folder = contents(trained), tmp_path / "drawn"

    def simulated() -> str:
        return cli(trained, "simulate", "parts", "--count", 12, "--output", folder).error

    def refuse(*arguments: object) -> None:
        raise DatabaseError("no more rows")

    with monkeypatch.context() as patch:
        patch.setattr(draw_simulated, "add_simulated", refuse)
        assert "no more rows" in simulated()
    assert not folder.exists()

    replace, calls = draw_simulated.os.replace, iter(range(100))

    def full(source: Path, target: Path) -> None:
        if source.parent.parent.name.startswith(".pgdefect") and next(calls) == 9:
            raise OSError(28, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(draw_simulated.os, "replace", full)
        assert "No space left" in simulated()
    assert not files(tmp_path)
    assert contents(trained) == before


def test_foreign_files_are_not_overwritten(cli: Cli, trained: Database, tmp_path: Path) -> None:
    mine = tmp_path / "cut_paste" / "seed0-00000-small-low.png"
    mine.parent.mkdir()
    mine.write_bytes(b"mine")
    result = cli(trained, "simulate", "parts", "--count", 4, "--output", tmp_path)
    assert "is there already and not of this simulation" in result.error
    assert files(tmp_path) == {"cut_paste/seed0-00000-small-low.png": b"mine"}
    assert value(trained, "SELECT count(*) FROM defect.simulated") == 0


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["nothing"], "unknown category 'nothing'|no category 'nothing'", 1),
        (["parts", "--kind", "dent"], "cut_paste, perlin, scratch, spot, not 'dent'", 2),
        (["parts", "--count", "0"], "between 1 and 100,000", 2),
        (["parts", "--yes"], "goes with --remove", 2),
        (["parts", "--remove", "--kind", "spot"], "takes all simulated images", 2),
        (["parts", "--output", "/proc/nowhere"], "cannot be written", 2),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else None,
)
def test_wrong_words_are_told(
    cli: Cli, trained: Database, arguments: list[str], message: str, code: int
) -> None:
    result = cli(trained, "simulate", *arguments)
    assert result.code == code
    assert re.search(message, result.error)


def test_another_place_for_the_same_images_and_lost_files_are_told(
    cli: Cli, trained: Database, drawn: Path, tmp_path: Path
) -> None:
    other = cli(trained, "simulate", "parts", "--count", 2, "--output", tmp_path / "other")
    assert f"are in {str(drawn)!r} already" in other.error
    before = contents(trained)
    image = next((drawn / "spot").glob("*.png"))
    content = image.read_bytes()
    image.write_bytes(content + b"\0")
    altered = cli(trained, "simulate", "parts", "--count", 12)
    assert "files are gone or altered" in altered.error
    image.write_bytes(content)
    mask = value(
        trained, "SELECT mask_path FROM pgdefect.image WHERE path = %s", f"spot/{image.name}"
    )
    (drawn / mask).unlink()
    assert "files are gone or altered" in cli(trained, "simulate", "parts", "--count", 12).error
    image.unlink()
    gone = cli(trained, "simulate", "parts", "--count", 12)
    assert "their files are gone" in gone.error
    assert "pgdefect simulate parts --remove" in gone.error
    assert contents(trained) == before


def test_images_too_small_for_a_defect_are_told(
    cli: Cli, trained: Database, tmp_path: Path
) -> None:
    (tmp_path / "shots").mkdir()
    Image.new("RGB", (20, 20), (90, 90, 90)).save(tmp_path / "shots" / "small.png")
    with psycopg.connect(trained.url) as connection:
        connection.execute("UPDATE pgdefect.image SET retired_at = now() WHERE split = 'test'")
    words = ("--category", "parts", "--split", "test", "--label", "normal")
    assert cli(trained, "ingest", tmp_path / "shots", *words).code == 0
    result = cli(trained, "simulate", "parts", "--count", 3, "--output", tmp_path / "drawn")
    assert "20 × 20 pixels is too small for a small defect" in result.error
    assert not (tmp_path / "drawn").exists()


# -- no report mixes them with real ones -------------------------------------------------------


def test_no_view_and_no_summary_shows_them(good: Cli, trained: Database, tmp_path: Path) -> None:
    def seen() -> dict[str, Rows]:
        return {view: sorted(query(trained, f"SELECT * FROM {view}"), key=repr) for view in VIEWS}

    before = seen(), good(trained, "categories", "--json").out
    good(trained, "simulate", "parts", "--count", 12, "--output", tmp_path / "drawn")
    assert (seen(), good(trained, "categories", "--json").out) == before
    assert value(trained, "SELECT count(*) FROM defect.simulated") == 12


def test_stored_images_are_listed_without_them(good: Cli, trained: Database, drawn: Path) -> None:
    assert {image.split for image in images_of(trained, "parts")} == {"train", "test"}
    assert len(images_of(trained, "parts", split="simulated")) == 12
    everything = good(trained, "inspect", "--category", "parts", "--json").json
    assert len(everything["inspections"]) == 29
    asked = good(trained, "inspect", "--category", "parts", "--split", "simulated", "--json").json
    assert len(asked["inspections"]) == 12


def test_search_lists_them_only_when_asked(good: Cli, trained: Database, drawn: Path) -> None:
    image = images_of(trained, "parts", split="test")[0]
    words = ("search", image.id, "-k", 50, "--by", "picture", "--all", "--json")
    found = good(trained, *words).json["neighbors"]
    assert len(found) == 28
    assert {neighbor["split"] for neighbor in found} == {"train", "test"}
    asked = good(trained, *words, "--simulated").json["neighbors"]
    assert len(asked) == 40
    assert sum(neighbor["split"] == "simulated" for neighbor in asked) == 12
    shown = good(trained, *words[:-1], "--simulated").out
    assert shown.count("(simulated)") == 12

    statement = (
        "SELECT split FROM defect.similar_images(%s, k => 50, by => 'picture', fold => false"
    )
    assert len(query(trained, f"{statement})", str(image.id))) == 28
    sql = query(trained, f"{statement}, simulated => true)", str(image.id))
    assert sum(split == "simulated" for (split,) in sql) == 12


def test_a_simulated_image_can_be_the_query(good: Cli, trained: Database, drawn: Path) -> None:
    image = images_of(trained, "parts", split="simulated")[0]
    found = query(trained, "SELECT split FROM defect.similar_images(%s, k => 50)", str(image.id))
    assert len(found) == 29
    assert ("simulated",) not in found
    result = good(trained, "search", image.id, "-k", 50, "--json").json
    assert len(result["neighbors"]) == 29
    assert result["query"]["image_id"] == image.id
    assert nearest_normal(trained, image.id).score > 0


def test_a_simulated_name_never_stands_in_the_way_of_a_real_one(
    trained: Database, drawn: Path
) -> None:
    [real] = [i for i in images_of(trained, "parts") if i.relative_path == "test/chip/000.png"]
    simulated = images_of(trained, "parts", split="simulated")[0]
    with psycopg.connect(trained.url) as connection:
        connection.execute(
            "UPDATE pgdefect.image SET path = 'chip/000.png' WHERE id = %s", [simulated.id]
        )
    assert find_image(trained, "chip/000.png").id == real.id
    assert find_image(trained, "drawn/chip/000.png").id == simulated.id
    assert find_image(trained, simulated.sha256[:12]).id == simulated.id


def test_ingesting_their_folder_or_copies_takes_none(
    good: Cli, trained: Database, drawn: Path, parts: Path, tmp_path: Path
) -> None:
    before = contents(trained)
    told = good(trained, "ingest", drawn, "--category", "parts", "--accept-changes")
    assert "0 added, 0 unchanged, 0 changed, 0 relabeled, 0 vanished" in told.out
    assert "24 files are simulated defects or masks of theirs; left out" in told.err
    copies = tmp_path / "copies"
    shutil.copytree(drawn / "spot", copies)
    shutil.copy(parts / "test/good/000.png", copies)
    told = good(trained, "ingest", copies, "--category", "other")
    assert "other: 1 added" in told.out
    assert told.err.count("is a simulated defect; left out") == 3
    assert contents(trained)["image"] == before["image"] + 1
    assert value(trained, "SELECT count(*) FROM defect.simulated") == 12


def test_drawn_into_the_folder_of_photographs_they_are_still_told_apart(
    good: Cli, trained: Database, parts: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "photographs"
    shutil.copytree(parts / "test" / "good", folder)
    good(trained, "ingest", folder, "--category", "parts", "--split", "test")
    good(trained, "simulate", "parts", "--count", 3, "--output", folder)
    told = good(trained, "ingest", folder, "--category", "parts", "--split", "test")
    assert "0 added, 4 unchanged" in told.out
    assert "6 files are simulated defects" in told.err


def test_a_vanished_simulated_file_is_no_affair_of_ingestion(
    good: Cli, trained: Database, parts: Path
) -> None:
    with trained.begin() as connection:
        category = value(trained, "SELECT id FROM pgdefect.category WHERE name = 'parts'")
        image = NewImage("gone.png", "0" * 64, 1, 8, 8, "simulated", simulation={"kind": "spot"})
        add_images(connection, category, ensure_root(connection, str(parts)), [image])
    told = good(trained, "ingest", parts, "--category", "parts", "--accept-changes").out
    assert "0 added, 29 unchanged, 0 changed, 0 relabeled, 0 vanished" in told
    assert value(trained, "SELECT retired_at FROM pgdefect.image WHERE path = 'gone.png'") is None


def test_inspecting_a_simulated_file_again_knows_it(
    good: Cli, trained: Database, drawn: Path
) -> None:
    before = contents(trained)
    good(trained, "inspect", drawn / "spot", "--category", "parts")
    assert contents(trained) == before


def test_nearest_images_leave_them_out_with_and_without_the_index(
    trained: Database, drawn: Path
) -> None:
    simulated = {image.id for image in images_of(trained, "parts", split="simulated")}
    with trained.connect() as connection:
        row = connection.exec_driver_sql(
            "SELECT extractor_id, embedding::real[] FROM pgdefect.image_embedding LIMIT 1"
        ).one()
    embedding = np.asarray(row[1], dtype=np.float32)
    for exact in (False, True):
        ask = partial(nearest, trained, "picture", row[0], embedding, 50, exact=exact, fold=False)
        found = ask(SearchFilter())
        assert simulated.isdisjoint(neighbor.image.id for neighbor in found)
        found = ask(SearchFilter(simulated=True))
        assert simulated <= {neighbor.image.id for neighbor in found}


def test_deleting_the_category_takes_them_along(good: Cli, trained: Database, drawn: Path) -> None:
    assert "41 images" in good(trained, "delete", "--category", "parts").out
    good(trained, "delete", "--category", "parts", "--yes")
    assert value(trained, "SELECT count(*) FROM pgdefect.image") == 0
