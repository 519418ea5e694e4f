"""A folder with every kind of bad file: the good ones are all there, the others are named."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fuzz.bad_folder import BadFolder, write_bad_folder
from pgdefect.cli.output import note, print_table
from pgdefect.db.connection.engine import Database
from pgdefect.vision.images.image import load_image

from .conftest import PROGRAM, Cli, contents, value


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> BadFolder:
    return write_bad_folder(tmp_path_factory.mktemp("bad") / "images")


def program(database: Database, *arguments: object) -> tuple[int, str, str]:
    """The command line as people run it, where warnings are no errors, and may be shown."""
    done = subprocess.run(
        [PROGRAM, "--database-url", database.url, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env={name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"},
    )
    return done.returncode, done.stdout, done.stderr


def test_pixels_of_the_good_ones_are_right(bad: BadFolder) -> None:
    assert len(bad.good) > 30
    for name, (expected, tolerance) in bad.good.items():
        pixels = load_image(bad.root / name)
        assert pixels.shape == expected.shape, name
        difference = np.abs(pixels.astype(int) - expected.astype(int)).max()
        assert difference <= tolerance, name


def test_the_good_ones_are_ingested_and_the_others_named(
    bad: BadFolder, database: Database
) -> None:
    code, out, err = program(database, "ingest", bad.root, "--category", "bad", "--json")
    assert code == 1
    assert "Traceback" not in err
    assert "Warning" not in err
    [report] = json.loads(out)
    assert report["added"] == len(bad.good)
    reasons = dict(report["failed"])
    assert set(reasons) == set(bad.refused)
    for name, part in bad.refused.items():
        assert part in reasons[name]
    for name, part in bad.skipped.items():
        [problem] = [line for line in report["problems"] if line.startswith(repr(name))]
        assert part in problem
    of_all = [
        line for line in report["problems"] if not line.startswith(tuple(map(repr, bad.skipped)))
    ]
    assert len(report["problems"]) == len(bad.skipped) + len(of_all)
    told = ("several depths", "gray level", "page or frame", "content of another", "white is")
    assert all(any(words in line for words in told) for line in of_all), of_all
    assert any("several depths" in line for line in of_all)
    stored = value(
        database, "SELECT jsonb_object_agg(path, array[height, width]) FROM pgdefect.image"
    )
    assert stored == {name: list(pixels.shape[:2]) for name, (pixels, _) in bad.good.items()}

    before = contents(database)
    code, out, _ = program(database, "ingest", bad.root, "--category", "bad", "--json")
    [again] = json.loads(out)
    assert (again["added"], again["unchanged"]) == (0, len(bad.good))
    assert contents(database) == before


def test_a_terminal_is_sent_no_control_characters(
    bad: BadFolder, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, err = program(database, "ingest", bad.root, "--category", "bad")
    assert "\x1b" not in out + err
    name = "\x1b[2Jx\n\u202egnp\x9b空 é"
    print_table(("path",), [(name,)])
    note(name)
    shown = capsys.readouterr()
    assert shown.out.splitlines()[2] == r"\x1b[2Jx\n\u202egnp\x9b空 é"
    assert shown.err == "\\x1b[2Jx\n\\u202egnp\\x9b空 é\n"


def test_inspecting_says_what_it_skips(
    cli: Cli, trained: Database, parts: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes((parts / "test/good/000.png").read_bytes())
    os.mkfifo(tmp_path / "pipe.png")
    Image.new("1", (128, 128)).save(tmp_path / "a_mask.png")
    for name in ("notes.txt", "b.heic", ".a.png"):
        (tmp_path / name).touch()
    result = cli(trained, "inspect", tmp_path, "--category", "parts", "--no-store", "--json")
    assert result.code == 0
    assert [Path(row["path"]).name for row in result.json["inspections"]] == ["a.png"]
    [problem] = result.json["problems"]
    assert "'pipe.png'" in problem
    skipped = result.json["skipped"]
    assert {(one["suffix"], one["reason"].split(":")[0]): one["count"] for one in skipped} == {
        ("", "a mask"): 1,
        (".heic", "a picture format that is not read"): 1,
        (".png", "a broken link or no regular file"): 1,
        (".png", "hidden, or left by an archive or a file manager"): 1,
        (".txt", "no image"): 1,
    }
    told = cli(trained, "inspect", tmp_path, "--category", "parts", "--no-store")
    assert "'pipe.png' is a broken link or no regular file; skipped" in told.err
    assert "left out: 1 .txt file: no image" in told.err


# -- bad metadata --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "cell", "told"),
    [
        ("x\0y", "1", "line 1: a NUL character"),
        ("group", "g" * 2001, "line 2: part has more than 2000 bytes"),
        ("defect_type", "é" * 1001, "line 2: defect_type has more than 2000 bytes"),
    ],
)
def test_metadata_that_the_database_cannot_hold_is_refused_before_it(
    cli: Cli, database: Database, parts: Path, tmp_path: Path, header: str, cell: str, told: str
) -> None:
    (tmp_path / "a.png").write_bytes((parts / "test/good/000.png").read_bytes())
    manifest = tmp_path / "list.csv"
    manifest.write_text(f"path,{header}\na.png,{cell}\n")
    result = cli(database, "ingest", manifest, "--category", "parts")
    assert result.code == 1
    assert told in result.error
    assert value(database, "SELECT count(*) FROM pgdefect.image") == 0


def test_names_made_of_sql_are_names(
    cli: Cli, database: Database, parts: Path, tmp_path: Path
) -> None:
    """Each of them at the limit of what is taken, where the index could still refuse it."""
    evil = "'; DROP TABLE pgdefect.image; --"
    quoted = '"""; DROP SCHEMA pgdefect CASCADE; --"'
    rng = np.random.default_rng(0)
    long = "".join(chr(n) for n in rng.integers(0x21, 0x7E, 1999)).replace(",", "_")
    long = long.replace('"', "_").strip()
    (tmp_path / f"{evil}.png").write_bytes((parts / "test/good/000.png").read_bytes())
    (tmp_path / "b.png").write_bytes((parts / "test/good/001.png").read_bytes())
    manifest = tmp_path / "list.csv"
    manifest.write_text(
        f"path,defect_type,group,{quoted}\n{evil}.png,{evil},{evil},{quoted}\nb.png,{long},{long},1\n"
    )
    assert cli(database, "ingest", manifest, "--category", evil).code == 0
    row = value(
        database,
        "SELECT array[c.name, i.path, i.defect_type, i.group_name, i.attributes::text] "
        "FROM pgdefect.image i JOIN pgdefect.category c ON c.id = i.category_id "
        "WHERE i.path <> 'b.png'",
    )
    assert row[:4] == [evil, f"{evil}.png", evil, evil]
    attribute = '"; DROP SCHEMA pgdefect CASCADE; --'
    assert json.loads(row[4]) == {attribute: attribute}
    assert value(database, "SELECT length(group_name) FROM pgdefect.image WHERE path = 'b.png'") > 9
    assert cli(database, "categories").code == 0


def test_of_several_categories_all_are_listed_before_one_is_stored(
    cli: Cli, database: Database, parts: Path, tmp_path: Path
) -> None:
    for name in ("a", "z" * 101):
        folder = tmp_path / name / "train/good"
        folder.mkdir(parents=True)
        (folder / "0.png").write_bytes((parts / "test/good/000.png").read_bytes())
    result = cli(database, "ingest", tmp_path, "--all")
    assert result.code == 2
    assert "1 to 100 printable characters" in result.error
    assert value(database, "SELECT count(*) FROM pgdefect.category") == 0


def test_options_that_are_no_numbers_or_json(cli: Cli, database: Database) -> None:
    deep = "[" * 100_000
    for arguments in (
        ("search", "1", "--attributes", deep),
        ("search", "1", "--attributes", f'{{"x": {"9" * 5000}}}'),
        ("search", "1", "--since", "0001-01-01"),
        ("search", "x.png", "--crop", "²,1,1,1"),
        ("search", "--patch", "²:1"),
        ("train", "parts", "--image-size", "²"),
    ):
        result = cli(database, *arguments)
        assert result.code == 2, arguments[2]
        assert arguments[-2] in result.error or arguments[1] in result.error


@pytest.mark.parametrize(
    ("first", "second", "added"),
    [("all", "all/day1", (4, 0)), ("all/day1", "all", (2, 2))],
    ids=["within", "around"],
)
def test_a_folder_within_or_around_an_ingested_one_makes_no_image_twice(
    cli: Cli, database: Database, tmp_path: Path, first: str, second: str, added: tuple[int, int]
) -> None:
    for name in ("day1/a", "day1/b", "day10/c", "d"):
        path = tmp_path / "all" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (32, 32), ord(name[-1])).save(path)

    def ingest(folder: str, category: str = "parts") -> tuple[int, list[str]]:
        done = cli(database, "ingest", tmp_path / folder, "--category", category, "--json")
        assert done.code == 0, done.err
        [report] = done.json
        return report["added"], report["problems"]

    assert ingest(first) == (added[0], [])
    for again in (added[1], 0):
        count, [problem] = ingest(second)
        assert count == again
        assert problem.startswith("2 files are images of this category already, ingested with ")
        assert repr(str(tmp_path / first)) in problem
    names = value(database, "SELECT array_agg(split_part(path, '/', -1)) FROM pgdefect.image")
    assert sorted(names) == ["a.png", "b.png", "c.png", "d.png"]
    assert ingest(first) == (0, [])
    # Another category's are its own, and a name that begins alike is no folder around it.
    assert ingest("all/day1", "others") == (2, [])
    assert ingest("all/day10", "others") == (1, [])
