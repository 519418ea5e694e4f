"""``pgdefect stats``: what the server spends its time on."""

from __future__ import annotations

from typing import Annotated

import typer

from pgdefect.cli.context import current
from pgdefect.cli.output import Json, note, print_json, print_table

QUERY_LENGTH = 80
"""Characters of a statement that the table shows; --json and --full have all."""


def register(app: typer.Typer) -> None:
    """Add this module's command to the application."""
    app.command("stats", epilog="Example:  pgdefect stats --limit 5")(stats_command)


def stats_command(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, help="How many statements to list.")] = 20,
    full: Annotated[
        bool, typer.Option("--full", help="Print statements in full, below the table.")
    ] = False,
    reset: Annotated[
        bool, typer.Option("--reset", help="Then reset the counters, for all logins.")
    ] = False,
    json: Json = False,
) -> None:
    """List the statements of pgdefect's that took the server the most time.

    Of this database, by all logins, since counting began. hits is the share of blocks that were
    found in the server's memory. The numbers are those of the extension pg_stat_statements, which
    the embedded server has; another one's administrator may have to add it.
    """
    from pgdefect.db.doctor import slow_statements

    here = current(context)
    ours = here.settings.database_url is None
    report = slow_statements.costliest(here.database, limit, make_extension=ours)
    if reset:
        slow_statements.reset(here.database, make_extension=ours)
    if json:
        print_json(report)
        return
    print_table(
        ("calls", "mean ms", "total ms", "max ms", "rows", "hits", "statement"),
        [
            (
                one.calls,
                f"{one.mean_ms:.2f}",
                f"{one.total_ms:.1f}",
                f"{one.max_ms:.2f}",
                one.rows,
                None if one.hit_share is None else f"{one.hit_share:.3f}",
                _short(one.query),
            )
            for one in report.statements
        ],
    )
    if full:
        for number, one in enumerate(report.statements, 1):
            typer.echo(f"\n-- {number}: {one.calls:,} calls, {one.total_ms:.1f} ms\n{one.query}")
    note(f"counted since {report.since}" + ("; counters reset" if reset else ""))
    if report.hidden:
        note(
            f"{report.hidden} statements of other logins cannot be read; pg_read_all_stats would "
            "let this one"
        )


def _short(query: str) -> str:
    line = " ".join(query.split())
    return line if len(line) <= QUERY_LENGTH else line[: QUERY_LENGTH - 1] + "…"
