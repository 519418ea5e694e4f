"""Options go by their old names for one version, which says so."""

from __future__ import annotations

import click
import pytest
import typer

from pgdefect.cli.main import app
from pgdefect.cli.renamed import RENAMED, current_names


def options_of(command: click.Command) -> set[str]:
    names = {name for parameter in command.params for name in parameter.opts}
    for one in getattr(command, "commands", {}).values():
        names |= options_of(one)
    return names


def test_today_s_names_are_the_new_ones() -> None:
    names = options_of(typer.main.get_command(app))
    assert names >= set(RENAMED.values()) | {"--detector-kind"}
    assert not names & set(RENAMED)


@pytest.mark.parametrize(
    ("given", "meant", "said"),
    [
        ("inspect a --model patchcore", "inspect a --kind patchcore", ["--model is called --kind"]),
        ("train a --model=efficient_ad", "train a --kind=efficient_ad", ["--model is called"]),
        ("train a --model-size small", "train a --model-size small", []),
        ("simulate a --kind spot --model x", "simulate a --kind spot --detector-kind x", ["--det"]),
        ("search --group g --exclude-group", "search --part g --exclude-part", ["--part", "--ex"]),
        ("db psql --group -- --group", "db psql --part -- --group", ["--part"]),
        ("inspect model group", "inspect model group", []),
    ],
)
def test_old_names_are_understood(
    capsys: pytest.CaptureFixture[str], given: str, meant: str, said: list[str]
) -> None:
    assert current_names(given.split()) == meant.split()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(said)
    for line, part in zip(lines, said, strict=True):
        assert part in line
        assert "the next version will not know" in line
