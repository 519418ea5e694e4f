"""``pgdefect demo``: see it work before using it."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgdefect.cli.context import current
from pgdefect.cli.output import Json, note, print_json, print_table, progress_bars
from pgdefect.cli.search import print_search

if TYPE_CHECKING:
    from pgdefect.db.connection.engine import Database
    from pgdefect.usecases.demo import DemoReport


def register(app: typer.Typer) -> None:
    """Add this module's command to the application."""
    app.command("demo", epilog="Example:  pgdefect demo --json")(demo_command)


def demo_command(
    context: typer.Context,
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="Where the contact sheet goes.")
    ] = Path("pgdefect-demo"),
    json: Json = False,
) -> None:
    """Learn two kinds of solar cells, flag defects, find similar images: two minutes.

    Uses the images of the package elpv-dataset and leaves the categories solar_mono and
    solar_poly in the database.
    """
    from pgdefect.usecases.demo import run_demo

    note("Starting Postgres …")
    database = current(context).database
    note("Learning and inspecting solar cells: two categories, 188 + 200 images each …")
    with progress_bars() as progress:
        report = run_demo(database, current(context).settings, output, progress=progress)
    psql = _psql_command(context)
    if json:
        print_json(
            {
                "categories": report.categories,
                **report.search.to_json(),
                "contact_sheet": report.contact_sheet,
                "psql": psql,
                "queries": report.queries,
                "seconds": report.seconds,
            }
        )
        return
    _print(report, database, psql)


def _print(report: DemoReport, database: Database, psql: str) -> None:
    from pgdefect.db.search.queries import nearest_normal

    typer.echo("What was learned, and how well it tells defects apart:\n")
    print_table(
        (
            "category",
            "training images",
            "memory bank",
            "image AUROC",
            "threshold",
            "defects found",
            "false rejects",
        ),
        [
            (
                c.category,
                c.training_images,
                c.bank_vectors,
                f"{c.image_auroc:.3f}",
                c.threshold,
                f"{c.detected} of {c.test_anomalous}",
                f"{c.false_rejects} of {c.test_normal}",
            )
            for c in report.categories
        ],
    )
    typer.echo("\nSeconds per stage:\n")
    stages = list(report.categories[0].seconds)
    print_table(
        ("category", *stages),
        [
            (c.category, *(f"{c.seconds.get(stage, 0.0):.1f}" for stage in stages))
            for c in report.categories
        ],
    )
    inspection = report.search.inspection
    typer.echo("\nOne defective cell, and the ten stored images most like it:\n")
    print_search(report.search)
    assert inspection is not None
    assert inspection.image_id is not None
    nearest = nearest_normal(database, inspection.image_id)
    typer.echo(
        f"\nIts worst patch is at x,y,width,height = {nearest.box}; the normal patch nearest to "
        f"it\nis at {nearest.normal_box} of {nearest.normal_path}, distance {nearest.score:.4f}."
    )
    typer.echo(f"\nContact sheet: {report.contact_sheet.absolute()}")
    typer.echo(f"\nGo on in psql:\n\n  {psql}\n")
    for query in report.queries:
        typer.echo(f"  {query}")
    typer.echo(f"\n{report.seconds:.0f} seconds in all.")


def _psql_command(context: typer.Context) -> str:
    """How this very program is called again: as it is on PATH, else by its path."""
    program = "pgdefect" if shutil.which("pgdefect") else sys.argv[0]
    options = current(context).options()
    return shlex.join([program, *options, "db", "psql"])
