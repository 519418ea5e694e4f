"""``pgdefect embed``: make the embeddings that searches need."""

from __future__ import annotations

from typing import Annotated

import typer

from pgdefect.cli.context import current
from pgdefect.cli.output import Json, failures, print_json, progress_bars


def register(app: typer.Typer) -> None:
    """Add this module's command to the application."""
    app.command("embed", epilog="Example:  pgdefect embed leather")(embed_command)


def embed_command(
    context: typer.Context,
    category: Annotated[str, typer.Argument(help="The product.")],
    again: Annotated[
        bool, typer.Option("--again", help="Also those that the active detector made before.")
    ] = False,
    json: Json = False,
) -> None:
    """Make the embeddings that searches need: all that are missing, or of an older detector.

    Image embeddings of all images; defect embeddings and regions of anomalous ones, after
    a new training or a review. Verdicts stay as they are.
    """
    from pgdefect.usecases.inspect.embed import embed

    with progress_bars() as progress:
        report = embed(
            current(context).database,
            current(context).settings,
            category,
            again=again,
            progress=progress,
        )
    if json:
        print_json(report)
    else:
        typer.echo(
            f"{category}: {report.image_embeddings} image embeddings and "
            f"{report.defect_embeddings} defect embeddings made (detector {report.detector_id})"
        )
    failures(report.failed)
