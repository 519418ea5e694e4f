"""Paths and files that cannot work: one clear line, and nothing left behind."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import psycopg
import pytest
from PIL import Image

from pgdefect.db.connection.engine import Database

from .conftest import Cli, contents, value


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder


@pytest.fixture
def mixed(parts: Path, tmp_path: Path) -> Path:
    """A folder with two good images among three that are none."""
    folder = tmp_path / "several"
    folder.mkdir()
    good = (parts / "test/good/000.png").read_bytes()
    (folder / "a.png").write_bytes(good)
    (folder / "half.png").write_bytes(good[: len(good) // 2])
    (folder / "nothing.png").write_bytes(b"")
    (folder / "words.png").write_text("not an image at all")
    shutil.copy(parts / "test/good/001.png", folder / "z.png")
    return folder


@pytest.mark.parametrize("command", ["ingest", "inspect"])
def test_missing_path(cli: Cli, trained: Database, command: str) -> None:
    before = contents(trained)
    result = cli(trained, command, "/nonexistent/images", "--category", "parts")
    assert result.code == 1
    assert "'/nonexistent/images' does not exist" in result.error
    assert "Check the path" in result.error
    assert contents(trained) == before


@pytest.mark.parametrize("command", ["ingest", "inspect"])
def test_folder_without_images(cli: Cli, trained: Database, empty: Path, command: str) -> None:
    before = contents(trained)
    (empty / "notes.txt").write_text("nothing to see")
    result = cli(trained, command, empty, "--category", "other" if command == "ingest" else "parts")
    assert result.code == 1
    assert str(empty) in result.error
    assert ".png" in result.error
    assert contents(trained) == before


def test_ingest_all_without_categories(cli: Cli, database: Database, empty: Path) -> None:
    result = cli(database, "ingest", empty, "--all")
    assert result.code == 1
    assert "has no category" in result.error
    assert cli(database, "ingest", empty / "nosuch", "--all").code == 1


def test_ingest_goes_on_after_unreadable_files(cli: Cli, database: Database, mixed: Path) -> None:
    result = cli(database, "ingest", mixed, "--category", "mixed")
    assert result.code == 1
    assert "2 added" in result.out
    assert "3 unreadable" in result.out
    heading, *reasons = result.err.splitlines()
    assert heading == "3 files could not be read:"
    for name, why in (("half.png", "cannot be decoded"), ("nothing.png", "is empty"),
                      ("words.png", "is not a PNG")):  # fmt: skip
        [line] = [line for line in reasons if name in line]
        assert why in line
    assert "Traceback" not in result.err
    assert value(database, "SELECT array_agg(path ORDER BY path) FROM pgdefect.image") == [
        "a.png",
        "z.png",
    ]
    # The JSON stays whole too.
    [report] = cli(database, "ingest", mixed, "--category", "mixed", "--json").json
    assert [name for name, _ in report["failed"]] == ["half.png", "nothing.png", "words.png"]


def test_inspect_goes_on_after_unreadable_files(cli: Cli, trained: Database, mixed: Path) -> None:
    before = contents(trained)
    result = cli(trained, "inspect", mixed, "--category", "parts", "--json")
    assert result.code == 1
    assert [Path(row["path"]).name for row in result.json["inspections"]] == ["a.png", "z.png"]
    failed = result.json["failed"]
    assert [Path(row["path"]).name for row in failed] == ["half.png", "nothing.png", "words.png"]
    assert result.err.startswith("3 files could not be read:")
    assert "Traceback" not in result.err
    # Both are known by content, so that nothing is added but inspections.
    assert contents(trained) == before | {"inspection": before["inspection"] + 2}


def test_nothing_but_unreadable_files(cli: Cli, trained: Database, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"")
    before = contents(trained)
    assert cli(trained, "inspect", tmp_path / "x.png", "--category", "parts").code == 1
    assert cli(trained, "ingest", tmp_path, "--category", "new").code == 1
    search = cli(trained, "search", tmp_path / "x.png")
    assert search.code == 1
    assert "is empty" in search.error
    assert contents(trained) == before


def test_images_of_every_kind_are_handled(
    cli: Cli, trained: Database, parts: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "kinds"
    folder.mkdir()
    source = Image.open(parts / "test/good/000.png").convert("RGB")
    source.quantize(256).save(folder / "palette.png")
    source.convert("CMYK").save(folder / "cmyk.jpg", quality=98)
    opaque = source.copy()
    opaque.putalpha(255)
    opaque.save(folder / "alpha.png")
    # Stored lying on its side; the EXIF orientation 6 stands it up again.
    turned = source.resize((128, 96)).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(folder / "rotated.png", exif=exif)

    result = cli(trained, "inspect", folder, "--category", "parts", "--json")
    assert result.code == 0, result.err
    scores = {Path(r["path"]).stem: r["raw_score"] for r in result.json["inspections"]}
    assert set(scores) == {"palette", "cmyk", "alpha", "rotated"}
    [plain] = cli(
        trained, "inspect", parts / "test/good/000.png", "--category", "parts", "--json"
    ).json["inspections"]
    # The same pixels give the same score, however they are stored.
    assert scores["alpha"] == pytest.approx(plain["raw_score"])
    assert value(
        trained,
        "SELECT array[width, height] FROM pgdefect.image WHERE path = 'rotated.png'",
    ) == [128, 96]
    assert cli(trained, "ingest", folder, "--category", "kinds").code == 0


def test_names_that_are_not_utf8(cli: Cli, trained: Database, parts: Path, tmp_path: Path) -> None:
    odd = os.path.join(str(tmp_path), "caf\udce9")
    os.mkdir(odd)
    shutil.copy(parts / "test/good/000.png", odd)
    before = contents(trained)
    ingested = cli(trained, "ingest", odd, "--category", "odd")
    assert (ingested.code, contents(trained)) == (2, before)
    assert "not valid UTF-8" in ingested.error
    assert cli(trained, "search", "caf\udce9").code == 2
    result = cli(trained, "inspect", tmp_path, "--category", "parts")
    assert result.code == 1
    assert "not valid UTF-8" in result.error


def test_names_with_spaces_quotes_and_accents(
    cli: Cli, trained: Database, parts: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "it's a 'test' — %s {x}"
    folder.mkdir()
    path = shutil.copy(parts / "test/chip/000.png", folder / "naïve [1] *.png")
    inspected = cli(trained, "inspect", path, "--category", "parts", "--json")
    assert inspected.code == 0
    assert inspected.json["inspections"][0]["path"] == str(path)
    assert cli(trained, "ingest", folder, "--category", "it's; DROP TABLE").code == 0
    assert cli(trained, "search", "naïve [1] *.png", "--category", "parts").code == 0
    assert "it's; DROP TABLE" in cli(trained, "categories").out


@pytest.mark.parametrize("name", ["", " x", "a\nb", "x" * 101, "a\0b"])
def test_names_no_category_can_have(cli: Cli, database: Database, parts: Path, name: str) -> None:
    result = cli(database, "ingest", parts, "--category", name)
    assert result.code == 2
    assert "1 to 100 printable characters" in result.error
    assert value(database, "SELECT count(*) FROM pgdefect.category") == 0


@pytest.mark.parametrize("kind", ["file", "kernel"])
def test_maps_that_cannot_be_written_are_refused_before_the_work(
    cli: Cli, trained: Database, parts: Path, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    folder = tmp_path / "file" if kind == "file" else Path("/proc/maps-of-pgdefect")
    with psycopg.connect(trained.url) as connection:
        connection.execute("DELETE FROM pgdefect.inspection")
    before = contents(trained)
    result = cli(
        trained, "inspect", parts / "test/chip", "--category", "parts", "--save-maps", folder
    )
    assert result.code == 2
    assert str(folder) in result.error
    assert "Name another folder" in result.error
    assert contents(trained) == before


def test_a_sheet_goes_into_a_new_folder_or_is_refused(
    cli: Cli, trained: Database, parts: Path, tmp_path: Path
) -> None:
    query = ("search", parts / "test/chip/000.png", "--sheet")
    made = tmp_path / "new" / "folder" / "sheet.png"
    assert cli(trained, *query, made).code == 0
    assert made.stat().st_size > 1000
    (tmp_path / "file").write_text("in the way")
    for bad in (tmp_path, tmp_path / "file" / "sheet.png", Path("/proc/sheet.png")):
        result = cli(trained, *query, bad)
        assert result.code == 2
        assert "cannot be written" in result.error
        assert "Name another" in result.error
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "new"]
