"""``pgdefect prune-inspections``: delete old inspections that nothing rests on."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from pgdefect.cli.context import current
from pgdefect.cli.output import note, print_json
from pgdefect.core.errors import UsageError


def register(app: typer.Typer) -> None:
    """Add this module's command to the application."""
    example = "pgdefect prune-inspections --older-than 365"
    app.command("prune-inspections", epilog=f"Example:  {example}")(prune_inspections_command)


def prune_inspections_command(
    context: typer.Context,
    older_than: Annotated[
        float, typer.Option(metavar="DAYS", help="Only inspections made more days ago than this.")
    ],
    category: Annotated[str | None, typer.Option(help="Only this category's.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it only show.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Delete old inspections that a later one of the same detector has superseded.

    Of every image stay the first inspection, which counts by day rest on, and each detector's
    newest, so that no verdict, threshold or figure changes. Without --yes nothing is deleted.
    """
    from pgdefect.db.records.retention import prunable, prune_inspections

    if not 0 <= older_than < 36500:
        raise UsageError(f"--older-than is a number of days from 0 to 36500, not {older_than:g}")
    before = datetime.now(UTC) - timedelta(days=older_than)
    work = prune_inspections if yes else prunable
    found = work(current(context).database, before, category)
    if json:
        print_json({"deleted": yes, "preview": found})
        return
    typer.echo(
        f"{'deleted' if yes else 'would delete'} {found.inspections:,} inspections of "
        f"{found.images:,} images made before {before:%Y-%m-%d %H:%M} UTC, "
        f"{found.bytes / 1e6:,.1f} MB of maps; {found.kept:,} inspections stay"
    )
    if found.runs:
        note(
            f"{found.runs} interrupted runs began before that and "
            f"{'can' if yes else 'could then'} no longer be resumed"
        )
    if not yes:
        note("Nothing was deleted; add --yes to do it.")
