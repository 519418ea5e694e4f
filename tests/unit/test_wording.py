"""Messages say settings and commands as the reader writes them."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import typer

import pgdefect
from pgdefect.cli.main import app
from pgdefect.cli.spelling import CommandLine
from pgdefect.core.errors import UsageError
from pgdefect.core.wording import blank, command, option, speaking
from pgdefect.core.words import SPLITS, check_word, either


def test_python_is_shown_parameters_and_calls() -> None:
    assert option("pca_dim") == "pca_dim"
    assert option("transform", "none") == "transform='none'"
    assert option("image_size", blank("SIZE")) == "image_size=SIZE"
    shown = command("ingest", blank("PATH"), category="leather", accept_changes=True)
    assert shown == "project.ingest(PATH, category='leather', accept_changes=True)"


def test_what_has_no_method_is_a_command_in_python_too() -> None:
    assert command("delete", detector=3, yes=True) == "pgdefect delete --detector 3 --yes"


def test_the_command_line_is_shown_flags_and_commands_that_can_be_pasted() -> None:
    with speaking(CommandLine()):
        assert option("pca_dim") == "--pca-dim"
        assert option("pca_dim", 64) == "--pca-dim 64"
        assert option("k") == "-k"
        assert option("store", False) == "--no-store"
        assert option("keep_patches", True) == "--keep-patches"
        shown = command("ingest", blank("PATH"), category="red leather", accept_changes=True)
        assert (
            command("ingest", "PATH;", category="NAME") == "pgdefect ingest 'PATH;' --category NAME"
        )
    assert shown == "pgdefect ingest PATH --category 'red leather' --accept-changes"
    assert option("pca_dim") == "pca_dim"


def test_the_spelling_is_restored_after_an_error() -> None:
    with pytest.raises(ValueError, match="stop"), speaking(CommandLine()):
        raise ValueError("stop")
    assert option("pca_dim") == "pca_dim"


def test_a_word_that_is_none_of_the_known_ones_is_refused() -> None:
    check_word("split", None, SPLITS)
    check_word("split", "test", SPLITS)
    with pytest.raises(
        UsageError, match=r"^split is train, test, production or simulated, not 'x'"
    ):
        check_word("split", "x", SPLITS)
    assert either(["exact"]) == "exact"
    assert either(["half", "single"]) == "half or single"


SOURCE = Path(pgdefect.__file__).parent
PROGRAMS = {
    *("db/backup/backup.py", "db/backup/pg_dump_archive.py", "db/backup/client_programs.py"),
    *("db/server/embedded_cluster.py", "db/server/embedded_owner.py"),
}
"""Modules that call programs of Postgres, some of whose flags are called as ours are."""
THEIR_FLAGS = {"--version", "--verbose", "--file", "--no-password"}


def flags_of(command: Any) -> set[str]:
    """Every long flag of a click command and of those below it."""
    found = {
        name
        for parameter in command.params
        for name in (*parameter.opts, *parameter.secondary_opts)
        if name.startswith("--")
    }
    return found.union(*map(flags_of, getattr(command, "commands", {}).values()))


def flags_named(path: Path, flags: set[str]) -> list[str]:
    """Flags of ours in a module's strings, docstrings too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", node.value)) & flags
            if node.value != "--" and re.search(r"(?<![\w-])--$", node.value):
                named.add("--{…}")  # an f-string that puts one together
            found += [f"{path.relative_to(SOURCE)}:{node.lineno} {one}" for one in sorted(named)]
    return found


def test_only_the_command_line_names_its_flags() -> None:
    flags = flags_of(typer.main.get_command(app))
    assert {"--category", "--no-store", "--max-vectors", "--generate"} <= flags
    assert flags_named(SOURCE / "cli/main.py", flags)
    wrong: list[str] = []
    for path in sorted(SOURCE.rglob("*.py")):
        file = path.relative_to(SOURCE).as_posix()
        if not file.startswith("cli/"):
            theirs = THEIR_FLAGS if file in PROGRAMS else set()
            wrong += flags_named(path, flags - theirs)
    assert wrong == [], "use pgdefect.core.wording: option() and command()"
