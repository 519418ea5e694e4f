"""``pgdefect doctor``: what is wrong, and how to fix it."""

from __future__ import annotations

from typing import Annotated

import typer

from pgdefect.cli.context import current
from pgdefect.cli.output import Json, note, print_json


def register(app: typer.Typer) -> None:
    """Add this module's command to the application."""
    app.command("doctor", epilog="Example:  pgdefect doctor")(doctor_command)


def doctor_command(
    context: typer.Context,
    fix: Annotated[
        bool,
        typer.Option(
            "--fix",
            help="Fix what is safe: statistics, dead rows, invalid and missing indexes, "
            "orphaned tables, damaged copies of networks.",
        ),
    ] = False,
    thorough: Annotated[
        bool, typer.Option("--thorough", help="Read large tables of vectors through as well.")
    ] = False,
    files: Annotated[
        bool, typer.Option("--files", help="Look for every image file; slow over a network.")
    ] = False,
    json: Json = False,
) -> None:
    """Look the database over: indexes, partitions, vectors, networks, memory, disk, rights.

    Each finding says what it means and how to fix it. Exit code 1 where there are faults;
    warnings and notes are none.
    """
    from pgdefect.usecases.doctor import examine

    here = current(context)
    report = examine(here.bare_database, here.settings, fix=fix, thorough=thorough, files=files)
    if json:
        print_json(report)
    else:
        note(f"{report.server} at {report.database}")
        for one in report.fixed:
            outcome = "fixed" if one.error is None else f"could not be fixed ({one.error})"
            typer.echo(f"{outcome}: {one.finding.check} {one.finding.subject}")
        for finding in report.findings:
            typer.echo(f"{finding.severity}: {finding.check}: {finding.subject}")
            typer.echo(f"  {finding.message}")
            typer.echo(f"  Remedy: {finding.remedy}")
        if not report.findings:
            typer.echo("nothing is wrong")
    if report.faults:
        raise typer.Exit(1)
