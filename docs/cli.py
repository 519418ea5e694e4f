"""The command-line reference, cli.md: made from the commands' own help."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer.main

from pgdefect.cli.main import app

GENERATED = "<!-- Made by `make docs` from the commands' own help; do not edit. -->"
INTRODUCTION = """
# Command line

Every command has `--help`, which says the same as this page. Commands that report print a table,
or with `--json` one JSON document on standard output; progress and notes go to standard error.
The exit code is 0, 1 for an error, 2 for wrong usage and 130 when interrupted.

Settings come from options, then the environment (`PGDEFECT_…`), then `pgdefect.toml` in the
current folder, then defaults.
""".strip()


def cli_page() -> str:
    """The page: the global options, then every command in the order of `pgdefect --help`."""
    root = typer.main.get_command(app)
    context = _context(root, "pgdefect")
    lines = [GENERATED, "", INTRODUCTION, "", "## Global options", "", *_parameters(root, context)]
    lines += ["", "## Commands", ""]
    commands = list(_commands(root, context))
    lines += [
        f"- [`{path}`](#{_anchor(path)}): {command.get_short_help_str(limit=200)}"
        for path, command, _ in commands
    ]
    for path, command, inside in commands:
        lines += ["", f"## {path}", "", *_paragraphs(command.help or "")]
        usage = " ".join(command.collect_usage_pieces(inside))
        lines += ["", "```console", f"$ {path} {usage}".rstrip(), "```", ""]
        lines += _parameters(command, inside)
        if command.epilog:
            lines += ["", "```console", *_examples(command.epilog), "```"]
    return "\n".join(lines).rstrip() + "\n"


def _context(command: Any, name: str, parent: Any = None) -> Any:
    # typer has a click of its own inside, so that click's classes cannot be named here.
    return command.make_context(name, [], parent=parent, resilient_parsing=True)


def _commands(group: Any, context: Any) -> Iterator[tuple[str, Any, Any]]:
    """Path, command and context of every command below a group."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if command.hidden:
            continue
        inside = _context(command, name, context)
        if hasattr(command, "list_commands"):
            yield from _commands(command, inside)
        else:
            yield inside.command_path, command, inside


def _parameters(command: Any, context: Any) -> list[str]:
    rows: list[str] = []
    for parameter in command.get_params(context):
        # An argument's record is its name and help, as an option's; a hidden one has none.
        record = parameter.get_help_record(context)
        if record is None or "--help" in record[0] or "completion" in record[0]:
            continue
        name, says = record
        rows.append(f"| `{_cell(name)}` | {_cell(' '.join(says.split()))} |")
    return ["| option | meaning |", "|---|---|", *rows] if rows else []


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _paragraphs(text: str) -> list[str]:
    """Help text as Markdown: what click keeps from wrapping (``\\b``) becomes a code block."""
    lines: list[str] = []
    for block in text.strip().split("\n\n"):
        kept = block.strip().startswith("\b")
        body = block.replace("\b\n", "").strip("\n")
        lines += ["```", *body.split("\n"), "```", ""] if kept else [*body.split("\n"), ""]
    return lines[:-1]


def _examples(epilog: str) -> list[str]:
    lines = [line.strip() for line in epilog.replace("\b", "").split("\n")]
    lines = [line.removeprefix("Example:").removeprefix("Examples:").strip() for line in lines]
    return [f"$ {line}" if line.startswith("pgdefect") else line for line in lines if line]


def _anchor(heading: str) -> str:
    return heading.lower().replace(" ", "-")
