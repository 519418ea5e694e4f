"""Every command explains itself, and the example at the end of its help works."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from sqlalchemy import text

from pgdefect import __version__
from pgdefect.cli.main import app, run
from pgdefect.db.connection.engine import Database

from .conftest import Cli, bundled_path

ROOT = typer.main.get_command(app)


def walk(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from walk(child, (*path, name))


COMMANDS = dict(walk(ROOT))
LEAVES = [path for path, command in COMMANDS.items() if not hasattr(command, "commands")]


def example_of(path: tuple[str, ...]) -> str:
    return str(COMMANDS[path].epilog or "").partition("Example:")[2].strip()


# What an example needs to run here: `old` in it becomes `new`.
SUBSTITUTIONS = {
    ("move-root",): [("/old/mvtec", "mvtec/leather"), ("/new/mvtec", "moved")],
    ("activate",): [("--detector 3", "--detector 1")],
    ("delete",): [("--detector 2", "--detector 1")],
    # The size of the trained template, whose extractor is used again.
    ("train",): [("train leather", "train leather --image-size 128")],
    # One of each kind, size and contrast; the default draws many more.
    ("simulate",): [("simulate leather", "simulate leather --count 36")],
}
PARSED_ONLY = [("demo",)]  # its two minutes are spent in test_demo, with fewer images
SERVER = [path for path in LEAVES if path[0] == "db"]


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_says_what_a_command_does_and_ends_with_an_example(
    cli: Cli, path: tuple[str, ...]
) -> None:
    result = cli(None, *path, "--help")
    assert result.code == 0
    assert result.err == ""
    assert COMMANDS[path].help
    if path in LEAVES or path == ():
        last = result.out.rstrip().splitlines()[-1].strip()
        assert last.startswith("Example:  "), result.out
        assert "pgdefect" in last


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_every_option_is_explained(path: tuple[str, ...]) -> None:
    for parameter in COMMANDS[path].params:
        assert getattr(parameter, "help", None), f"{path}: {parameter.name}"


@pytest.fixture
def workplace(
    trained: Database, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Database:
    """The folders and the category that the examples speak of."""
    leather = tmp_path / "mvtec" / "leather"
    shutil.copytree(parts, leather)
    for name in ("test/scratch/{}.png", "ground_truth/scratch/{}_mask.png"):
        (leather / name.format("002")).rename(leather / name.format("003"))
    shutil.copytree(parts / "test" / "stain", tmp_path / "new")
    (tmp_path / "moved").mkdir()
    with trained.begin() as connection:
        connection.execute(text("UPDATE pgdefect.category SET name = 'leather'"))
        connection.execute(text("UPDATE pgdefect.image_root SET path = :p"), {"p": str(leather)})
        connection.execute(
            text(
                "UPDATE pgdefect.image SET path = replace(path, '002', '003'), "
                "mask_path = replace(mask_path, '002', '003') WHERE path LIKE 'test/scratch/002%'"
            )
        )
    trained.dispose()
    monkeypatch.chdir(tmp_path)
    return trained


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", [p for p in LEAVES if p not in PARSED_ONLY and p not in SERVER], ids=" ".join
)
def test_the_example_works(
    workplace: Database, cli: Cli, path: tuple[str, ...], tmp_path: Path
) -> None:
    words = example_of(path)
    for old, new in SUBSTITUTIONS.get(path, []):
        assert old in words
        words = words.replace(old, new)
    if path == ("import",):  # anomalib can follow these preparations
        followed = ("--image-size", 128, "--resize", "stretch", "--local-contrast", 0)
        assert cli(workplace, "train", "leather", *followed).code == 0
    program, *arguments = shlex.split(words)
    assert program == "pgdefect"
    assert tuple(arguments[: len(path)]) == path
    if path == ("stats",):  # another server's administrator has made it
        with workplace.begin() as connection:
            connection.execute(text("CREATE EXTENSION pg_stat_statements"))
    if path == ("import",):  # it speaks of a file that export writes
        assert cli(workplace, "export", "leather", "leather.ckpt").code == 0
    result = cli(workplace, *arguments)
    assert result.code == 0, result.err
    assert result.out.strip()
    match path:
        case ("ingest",):
            assert "0 added, 29 unchanged" in result.out
        case ("search",):
            assert (tmp_path / "sheet.png").stat().st_size > 1000
        case ("inspect",):
            assert len(list((tmp_path / "maps").glob("*.png"))) == 3


@pytest.mark.parametrize("path", [(), *PARSED_ONLY], ids=" ".join)
def test_the_example_of_the_demo_can_be_parsed(path: tuple[str, ...]) -> None:
    program, name, *arguments = shlex.split(example_of(path))
    assert (program, name) == ("pgdefect", "demo")
    context = COMMANDS[("demo",)].make_context(name, arguments)
    assert set(context.params) >= {"output", "json"}


@pytest.mark.server
def test_the_examples_about_the_server_work_as_pasted(place: Path) -> None:
    # A server of its own: other tests leave rows in theirs, and restoring refuses those.
    environment = {
        **os.environ,
        "PGDEFECT_DATA_DIR": str(place / "pasted"),
        "PATH": bundled_path(),
        "PAGER": "cat",
    }
    order = ["up", "status", "url", "upgrade", "check", "backup", "restore"]
    order += ["role setup", "role add", "role list", "role drop", "psql", "down"]
    assert {("db", *name.split()) for name in order} == set(SERVER)
    printed = {}
    for name in order:
        done = subprocess.run(
            ["bash", "-c", example_of(("db", *name.split()))],
            env=environment,
            cwd=place,
            input="SELECT 'pasted' AS it;\n",
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"{name}: {done.stderr}"
        printed[name] = done.stdout
    assert printed["up"].startswith("postgresql://")
    assert '"running": true' in printed["status"]
    assert "pasted" in printed["url"]
    assert "agree" in printed["check"]
    assert "pgdefect.dump: " in printed["backup"]
    assert " rows in " in printed["restore"]
    assert "password: " in printed["role add"]
    assert "analyst" in printed["role list"]
    assert printed["role drop"] == "analyst is dropped\n"
    assert "(0 rows)" in printed["psql"]


def test_version(cli: Cli) -> None:
    assert cli(None, "--version").out.startswith(f"pgdefect {__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nonsense"], "nonsense"),
        (["search", "--frob"], "--frob"),
        (["db", "nonsense"], "nonsense"),
        (["categories", "extra"], "extra"),
        (["search", "x", "-k", "many"], "-k"),
        (["retire", "--detector", "0"], "--detector"),
        (["--nonsense"], "--nonsense"),
        (["ingest"], "path"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_wrong_words_are_named_with_exit_code_2(cli: Cli, arguments: list[str], named: str) -> None:
    for prefix in ([], ["--verbose"]):
        result = cli(None, *prefix, *arguments)
        assert result.code == 2
        assert result.out == ""
        assert named in result.err
        assert "Traceback" not in result.err


def test_without_a_word_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 2
    captured = capsys.readouterr()
    assert "Usage: pgdefect" in captured.out + captured.err
