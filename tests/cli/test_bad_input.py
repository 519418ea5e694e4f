"""What cannot work: one clear line, exit code 1 or 2, and nothing left behind."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path

import numpy as np
import psycopg
import pytest
from PIL import Image

from pgdefect.config import Settings
from pgdefect.db.engine import Database
from pgdefect.db.search import SearchFilter, nearest
from pgdefect.errors import Conflict

from .conftest import PROGRAM, TINY, Cli, contents, value


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder


@pytest.fixture
def mixed(parts: Path, tmp_path: Path) -> Path:
    """A folder with two good images among three that are none."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    good = (parts / "test/good/000.png").read_bytes()
    (folder / "a.png").write_bytes(good)
    (folder / "cut.png").write_bytes(good[: len(good) // 2])
    (folder / "nothing.png").write_bytes(b"")
    (folder / "words.png").write_text("not an image at all")
    shutil.copy(parts / "test/good/001.png", folder / "z.png")
    return folder


# -- paths and files ---------------------------------------------------------------------


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
    for name, why in (("cut.png", "cannot be decoded"), ("nothing.png", "is empty"),
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
    assert [name for name, _ in report["failed"]] == ["cut.png", "nothing.png", "words.png"]


def test_inspect_goes_on_after_unreadable_files(cli: Cli, trained: Database, mixed: Path) -> None:
    before = contents(trained)
    result = cli(trained, "inspect", mixed, "--category", "parts", "--json")
    assert result.code == 1
    assert [Path(row["path"]).name for row in result.json["inspections"]] == ["a.png", "z.png"]
    failed = result.json["failed"]
    assert [Path(row["path"]).name for row in failed] == ["cut.png", "nothing.png", "words.png"]
    assert result.err.startswith("3 files could not be read:")
    assert "Traceback" not in result.err
    # Both are known by content, so that nothing is added but their renewed inspections.
    assert contents(trained) == before


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
    gray = np.asarray(source.convert("L"))
    Image.fromarray(gray.astype(np.uint16) * 257).save(folder / "16bit.png")
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
    assert set(scores) == {"16bit", "palette", "cmyk", "alpha", "rotated"}
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


# -- what is not there -------------------------------------------------------------------


def test_unknown_things_are_named_with_those_that_are_known(
    cli: Cli, trained: Database, parts: Path
) -> None:
    for arguments in (
        ("inspect", parts, "--category", "lether"),
        ("train", "lether"),
        ("search", parts / "test/chip/000.png", "--category", "lether"),
        ("retire", "--category", "lether"),
        ("delete", "--category", "lether", "--yes"),
        ("detectors", "--category", "lether"),
    ):
        result = cli(trained, *arguments)
        assert result.code == 1, arguments
        assert "no category 'lether'; known: parts" in result.error
    for arguments in (("retire", "--detector", 77), ("delete", "--detector", 77)):
        assert "no detector 77; known: 1" in cli(trained, *arguments).error
    for word in ("nosuch.png", "77", "feedface00", "000"):
        result = cli(trained, "search", word)
        assert result.code == 1
        assert f"no stored image is called '{word}'" in result.error
        assert "id" in result.error
    ambiguous = cli(trained, "search", "000.png")
    assert ambiguous.code == 1
    assert "5 images are called '000.png'" in ambiguous.error
    for patch in ("1:9999999", "9:0", "99999999999999999999:0", "1:99999999999"):
        result = cli(trained, "search", "--patch", patch)
        assert result.code == 1, patch
        assert patch.partition(":")[0] in result.error
        assert "upgrade" not in result.error
    assert "known roots: " in cli(trained, "move-root", "/nonexistent", parts).error


def test_category_without_a_trained_bank(cli: Cli, database: Database, parts: Path) -> None:
    assert cli(database, "ingest", parts, "--category", "parts").code == 0
    before = contents(database)
    for arguments in (
        ("inspect", parts / "test", "--category", "parts"),
        ("search", parts / "test/chip/000.png"),
        ("search", "chip/000.png"),
    ):
        result = cli(database, *arguments)
        assert result.code == 1
        assert "pgdefect train parts" in result.error
    assert contents(database) == before
    inspecting = cli(database, "ingest", parts, "--category", "parts", "--inspect")
    assert inspecting.code == 1
    assert "pgdefect train parts" in inspecting.error


def test_too_few_training_images(cli: Cli, trained: Database, parts: Path, tmp_path: Path) -> None:
    assert cli(trained, "ingest", parts / "test/good", "--category", "few").code == 0
    before = contents(trained)
    result = cli(trained, "train", "few", *TINY)
    assert result.code == 1
    assert "has 4 normal training images and needs at least 5" in result.error
    assert "pgdefect ingest" in result.error
    assert contents(trained) == before
    # Enough in the database, too few on disk.
    folder = tmp_path / "gone"
    shutil.copytree(parts / "train/good", folder)
    assert cli(trained, "ingest", folder, "--category", "gone").code == 0
    for path in sorted(folder.iterdir())[3:]:
        path.unlink()
    before = contents(trained)
    result = cli(trained, "train", "gone", *TINY)
    assert result.code == 1
    assert "only 3 of 16 training images of 'gone' can be read" in result.error
    assert contents(trained) == before


def test_training_images_of_one_group_only(cli: Cli, trained: Database) -> None:
    with psycopg.connect(trained.url) as connection:
        connection.execute("UPDATE pgdefect.image SET group_name = 'the one'")
    result = cli(trained, "train", "parts", *TINY)
    assert result.code == 1
    assert "one group" in result.error


def test_an_inspected_category_whose_files_are_gone(
    cli: Cli, trained: Database, parts: Path, tmp_path: Path
) -> None:
    with psycopg.connect(trained.url) as connection:
        connection.execute("UPDATE pgdefect.image_root SET path = %s", [str(tmp_path / "moved")])
    result = cli(trained, "inspect", "--category", "parts", "--split", "test")
    assert result.code == 1
    assert "13 files could not be read" in result.err
    assert "does not exist" in cli(trained, "search", "chip/000.png").error


# -- options -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("train", "parts", "--image-size", "huge"), "--image-size"),
        (("train", "parts", "--image-size", "3x4x5"), "--image-size"),
        (("train", "parts", "--image-size", "-128"), "--image-size"),
        (("train", "parts", "--image-size", "0"), "image_size"),
        (("train", "parts", "--image-size", "100000"), "--image-size"),
        (("train", "parts", *TINY, "--center-crop", "256"), "center_crop"),
        (("train", "parts", "--coreset-ratio", "0"), "--coreset-ratio"),
        (("train", "parts", "--coreset-ratio", "1.5"), "--coreset-ratio"),
        (("train", "parts", "--coreset-ratio", "nan"), "--coreset-ratio"),
        (("train", "parts", "--max-vectors", "-1"), "--max-vectors"),
        (("train", "parts", "--holdout", "1.5"), "--holdout"),
        (("train", "parts", "--false-reject-rate", "2"), "--false-reject-rate"),
        (("train", "parts", "--num-neighbors", "0"), "--num-neighbors"),
        (("train", "parts", "--batch-size", "0"), "--batch-size"),
        (("train", "parts", "--seed", "-1"), "--seed"),
        (("train", "parts", "--pca-dim", "-3"), "--pca-dim"),
        (("train", "parts", "--metric", "manhattan"), "manhattan"),
        (("train", "parts", "--transform", "magic"), "--transform"),
        (("train", "parts", "--transform", "none"), "--metric l2"),
        (("train", "parts", "--precision", "double"), "--precision"),
        (("train", "parts", "--device", "abacus"), "abacus"),
        (("train", "parts", "--backbone", "nosuch"), "pgdefect backbones"),
        (("train", "parts", "--layers", "nosuch"), "blocks.2"),
        (("train", "parts", "--layer-weights", "nosuch=2"), "blocks.2"),
        (("train", "parts", "--layer-weights", "blocks.2"), "LAYER=WEIGHT"),
        (("train", "parts", "--layer-weights", "blocks.2=much"), "'blocks.2=much'"),
        (("train", "parts", "--layer-weights", "blocks.2=1,blocks.2=2"), "twice"),
        (("train", "parts", "--layer-weights", "blocks.2=-1"), "above 0"),
        (("train",), "--all"),
        (("train", "parts", "--all"), "--all"),
        (("inspect",), "--category"),
        (("inspect", "x.png", "--category", "parts", "--split", "test"), "--split"),
        (("search",), "--patch"),
        (("search", "1", "--patch", "1:1"), "--patch"),
        (("search", "--patch", "one"), "BANK:POSITION"),
        (("search", "--patch", "1:1", "-k", "0"), "-k"),
        (("search", "1", "-k", "0"), "-k"),
        (("search", "1", "-k", "-1"), "-k"),
        (("search", "1", "-k", "1000000"), "10,000"),
        (("search", "1", "--label", "good"), "--label"),
        (("ingest", "x"), "--category"),
        (("ingest", "x", "--all", "--category", "y"), "--all"),
        (("ingest", "/tmp", "--all", "--split", "test"), "--split"),
        (("retire",), "--detector"),
        (("delete", "--image", "1", "--detector", "1"), "--image"),
        (("move-root", "/tmp", "/nonexistent"), "/nonexistent"),
        (("db", "up"), "--database-url"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_options_that_make_no_sense(
    cli: Cli, shared: Database, arguments: tuple[str, ...], named: str
) -> None:
    before = contents(shared)
    result = cli(shared, *arguments)
    assert result.code == 2
    assert named in result.error
    assert contents(shared) == before


@pytest.fixture(scope="module")
def shared(_trained_template: Database, new_database) -> Database:
    """One trained database for tests that prove to change nothing."""
    return new_database(_trained_template)


def test_weights_that_do_not_fit(cli: Cli, trained: Database, tmp_path: Path) -> None:
    import pickle

    before = contents(trained)
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(os.getcwd))
    for path, told in (("nosuch.pth", "no weights file"), ("evil.pth", "loaded safely")):
        result = cli(trained, "train", "parts", *TINY, "--weights", tmp_path / path)
        assert result.code == 1
        assert told in result.error
        assert path in result.error
    assert contents(trained) == before


def test_a_filter_that_nothing_passes_gives_no_rows(cli: Cli, trained: Database) -> None:
    result = cli(trained, "search", "chip/000.png", "--defect-type", "nosuch", "--json")
    assert (result.code, result.json["neighbors"]) == (0, [])


# -- the database ------------------------------------------------------------------------


def test_no_database(cli: Cli) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    nowhere = Database(f"postgresql://someone:s3cret@127.0.0.1:{port}/x")
    for arguments in (("categories",), ("db", "check"), ("db", "upgrade"), ("db", "psql")):
        result = cli(nowhere, *arguments)
        assert result.code == 1
        assert f"127.0.0.1:{port}" in result.error
        assert "--database-url" in result.error
        assert "s3cret" not in result.err


def test_no_such_database(cli: Cli, trained: Database) -> None:
    result = cli(Database(trained.url.replace("/test_", "/nosuch_")), "categories")
    assert result.code == 1
    assert "nosuch_" in result.error


@pytest.mark.parametrize("url", ["mysql://host/name", "nonsense", "postgresql://[bad"])
def test_a_url_that_is_none(cli: Cli, url: str) -> None:
    result = cli(None, "--database-url", url, "categories")
    assert result.code in (1, 2)
    assert "URL" in result.error


def test_a_database_without_the_schema(cli: Cli, empty_database: Database, parts: Path) -> None:
    for arguments in (
        ("categories",),
        ("ingest", parts, "--category", "parts"),
        ("train", "parts"),
        ("search", "1"),
    ):
        result = cli(empty_database, *arguments)
        assert result.code == 1
        assert "pgdefect db upgrade" in result.error
    assert value(empty_database, "SELECT to_regnamespace('pgdefect')") is None


def test_wrong_password(cli: Cli, place: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    up = cli(None, "--data-dir", place / "data", "db", "up", "--listen", address)
    assert up.code == 0, up.err
    url = up.out.strip()
    right = psycopg.conninfo.conninfo_to_dict(url)
    assert cli(Database(url), "categories").code == 0
    wrong = Database(url.replace(str(right["password"]), "wr0ng"))
    result = cli(wrong, "categories")
    assert result.code == 1
    assert "refuses this login" in result.error
    assert "password" in result.error
    assert "wr0ng" not in result.err
    assert cli(None, "--data-dir", place / "data", "db", "down").code == 0
    assert cli(Database(url), "categories").code == 1


def test_vectors_of_another_extractor(trained: Database) -> None:
    with pytest.raises(
        Conflict, match=r"48 dimensions, and what extractor 1 is searched for by picture has 152"
    ):
        nearest(trained, "picture", 1, np.ones(48, dtype=np.float32), 3, SearchFilter())


@pytest.mark.parametrize("tag", ["CREATE TABLE", "CREATE INDEX"])
def test_no_space_left_while_loading(cli: Cli, trained: Database, tag: str) -> None:
    with psycopg.connect(trained.url) as connection:
        connection.execute(
            "CREATE FUNCTION full_disk() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN "
            "RAISE EXCEPTION 'could not extend file: No space left on device' "
            "USING ERRCODE = '53100'; END $$"
        )
        connection.execute(
            f"CREATE EVENT TRIGGER full_disk ON ddl_command_end WHEN TAG IN ('{tag}') "
            "EXECUTE FUNCTION full_disk()"
        )
    before = contents(trained)
    result = cli(trained, "train", "parts", *TINY)
    assert result.code == 1
    assert "no space left" in result.error
    assert "free some space" in result.error
    assert contents(trained) == before
    assert value(trained, "SELECT id FROM pgdefect.detector WHERE active") == 1


def test_a_training_under_way_is_not_disturbed(cli: Cli, trained: Database) -> None:
    with trained.lock("training of parts"):
        result = cli(trained, "train", "parts", *TINY)
    assert result.code == 1
    assert "training of parts is under way" in result.error


def test_errors_show_where_they_come_from_only_with_verbose(cli: Cli, trained: Database) -> None:
    assert "Traceback" not in cli(trained, "search", "nosuch").err
    told = cli(trained, "--verbose", "search", "nosuch")
    assert told.code == 1
    assert "Traceback" in told.err
    assert "find_image" in told.err
    assert cli(None, "--verbose", "search").code == 2


# -- settings ----------------------------------------------------------------------------


def test_settings_that_cannot_be_read(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pgdefect.toml").write_text('database_url = "unclosed\n')
    result = cli(None, "categories")
    assert result.code == 2
    assert "pgdefect.toml" in result.error
    (tmp_path / "pgdefect.toml").write_text("database_url = 5\n")
    result = cli(None, "categories")
    assert result.code == 2
    assert "DATABASE_URL" in result.error
    assert "5" in result.error


def test_a_bad_url_in_the_environment(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGDEFECT_DATABASE_URL", "sqlite:///x")
    result = cli(None, "categories")
    assert result.code == 2
    assert "postgresql://" in result.error


def test_a_missing_extra_names_what_to_install(trained: Database) -> None:
    """As on an inspection station, which has no torch."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'anomalib', 'timm']));"
        "from pgdefect.cli.main import main; main()"
    )
    done = subprocess.run(
        [str(Path(PROGRAM).with_name("python")), "-c", code, "--database-url", trained.url,
         "train", "parts"],
        capture_output=True,
        text=True,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert "pip install 'pgdefect[train]'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_settings_fixture_is_not_the_developers(settings: Settings) -> None:
    assert settings.database_url is None
