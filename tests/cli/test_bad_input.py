"""What is not there, and options that make no sense: one clear line, and nothing left behind."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import psycopg
import pytest

from pgdefect.db.connection.engine import Database

from .conftest import TINY, Cli, contents, value

# -- what is not there -----------------------------------------------------------------


def test_a_stored_query_whose_file_is_gone_or_another(
    cli: Cli, trained: Database, own_files: Path
) -> None:
    chip, stain = own_files / "test/chip/000.png", own_files / "test/stain/000.png"
    number = str(value(trained, "SELECT defect.find_image('chip/000.png')"))
    chip.write_bytes(stain.read_bytes())
    changed = cli(trained, "search", number)
    assert changed.code == 1
    assert "chip/000.png' has changed since it was ingested" in changed.error
    chip.unlink()
    gone = cli(trained, "search", number)
    assert gone.code == 1
    assert f"the file of image {number}" in gone.error
    assert "pgdefect move-root OLD NEW" in gone.error


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


# -- options ---------------------------------------------------------------------------


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
        (("inspect", "--category", "parts", "--split", "tset"), "--split is train, test, prod"),
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
