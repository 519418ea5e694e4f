"""Options that have a new name: the old one is understood for one version, with a note."""

from __future__ import annotations

import typer

RENAMED = {
    "--model": "--kind",
    "--group": "--part",
    "--groups": "--parts",
    "--exclude-group": "--exclude-part",
    "--without-groups": "--without-parts",
}
_IN_SIMULATE = {"--model": "--detector-kind"}
"""Where --kind is of the simulated defect."""


def current_names(arguments: list[str]) -> list[str]:
    """A command line with today's names; says on stderr which names were old."""
    renamed = RENAMED | (_IN_SIMULATE if "simulate" in arguments else {})
    found: list[str] = []
    for position, word in enumerate(arguments):
        if word == "--":
            return found + arguments[position:]
        name, equals, value = word.partition("=")
        new = renamed.get(name)
        if new is not None:
            typer.echo(
                f"pgdefect: {name} is called {new} now; the next version will not know {name}",
                err=True,
            )
        found.append(word if new is None else f"{new}{equals}{value}")
    return found
