"""The command that checks what the indexes find."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from pgdefect.cli.context import current
from pgdefect.cli.output import Json, note, print_json, print_table, progress_bars


def register(app: typer.Typer) -> None:
    """Add this module's command to the application."""
    app.command("recall-check", epilog="Example:  pgdefect recall-check leather --fix")(
        recall_check_command
    )


def recall_check_command(
    context: typer.Context,
    categories: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CATEGORY]...", help="Their active detectors' only."),
    ] = None,
    sample: Annotated[
        int, typer.Option(min=1, max=100_000, help="How many queries to ask each index.")
    ] = 200,
    fix: Annotated[
        bool,
        typer.Option("--fix", help="Store the ef_search that reaches the recall; it is then used."),
    ] = False,
    json: Json = False,
) -> None:
    """Compare every HNSW index with an exact search.

    Asked for are the 10 nearest images, defects and regions, and the nearest vector of a memory
    bank, of queries that lie beside stored vectors. Should be found are 0.99 of them; an index
    that finds fewer ends the command with code 1, and with --fix is searched for longer.
    """
    from pgdefect.db.search.recall import TARGET, check_recall

    with progress_bars() as progress:
        reports = check_recall(
            current(context).database,
            categories or (),
            sample=sample,
            fix=fix,
            progress=progress,
        )
    low = [report for report in reports if not report.ok]
    if json:
        print_json(
            {"target": TARGET, "ok": not low}
            | {"indexes": [asdict(report) | {"ok": report.ok} for report in reports]}
        )
    else:
        print_table(
            (
                *("index", "of", "vectors", "queries", "recall", "worst", "p50 ms", "p99 ms"),
                *("ef_search", f"for {TARGET}"),
            ),
            [
                (
                    report.index,
                    f"{report.subject}, {report.searched}",
                    report.num_vectors,
                    report.num_queries,
                    f"{report.recall:.4f} @{report.k}",
                    f"{report.worst_recall:.2f}",
                    f"{report.p50_ms:.2f}",
                    f"{report.p99_ms:.2f}",
                    report.ef_search,
                    "none" if report.ef_needed is None else report.ef_needed,
                )
                for report in reports
            ],
        )
        for report in reports:
            if report.ef_before is not None:
                note(f"{report.index}: ef_search was {report.ef_before}, is {report.ef_search}")
        for report in low:
            note(f"{report.index} finds {report.recall:.4f} of the nearest, and should {TARGET}")
        if any(report.ef_needed is None for report in low):
            note("where no ef_search is enough the graph is at fault: REINDEX INDEX pgdefect.NAME")
        elif low:
            note("search for longer with: pgdefect recall-check --fix")
        if not reports:
            note("no index holds two vectors yet")
    if low:
        raise typer.Exit(1)
