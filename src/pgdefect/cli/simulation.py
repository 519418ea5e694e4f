"""Simulated defects: simulate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgdefect.cli.context import current
from pgdefect.cli.inspection import Kind
from pgdefect.cli.output import Json, failures, note, print_json, print_table, progress_bars
from pgdefect.core.errors import UsageError

if TYPE_CHECKING:
    from pgdefect.usecases.simulate.simulate import Rate, SimulationReport

_SOURCES = {
    "test": "normal test images",
    "held_out": "normal training images that set the threshold",
    "training": "normal training images",
}


def register(app: typer.Typer) -> None:
    """Add this module's command to the application."""
    example = "pgdefect simulate leather --output drawn --sheet sheet.png"
    app.command("simulate", epilog=f"Example:  {example}")(simulate_command)


def simulate_command(
    context: typer.Context,
    category: Annotated[str, typer.Argument(help="The product's name.")],
    kind: Annotated[
        list[str] | None,
        typer.Option(help="Only cut_paste, perlin, scratch or spot; may be given again."),
    ] = None,
    count: Annotated[
        int, typer.Option(help="How many images, spread over kinds, sizes and contrasts.")
    ] = 120,
    seed: Annotated[
        int, typer.Option(min=0, max=2**31 - 1, help="Another seed draws other defects.")
    ] = 0,
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where images and masks go, not the data directory."),
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Write a contact sheet.")
    ] = None,
    detector_kind: Kind = None,
    remove: Annotated[
        bool, typer.Option("--remove", help="Instead: delete the category's simulated images.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="With --remove: do it, not only show what goes.")
    ] = False,
    json: Json = False,
) -> None:
    """Draw defects on normal images and see which the active detector finds.

    For a line that has no defects yet. The images are recorded as simulated, and no
    report or search shows them unless asked to (search --simulated, the view defect.simulated).
    """
    if remove:
        if kind or output or sheet or detector_kind:
            raise UsageError("--remove takes all simulated images of the category; leave the rest")
        _remove(context, category, yes, json)
        return
    if yes:
        raise UsageError("--yes goes with --remove")
    from pgdefect.usecases.pictures import save_simulation_sheet, writable_sheet
    from pgdefect.usecases.simulate.simulate import simulate

    if sheet is not None:
        writable_sheet(sheet)
    with progress_bars() as progress:
        report = simulate(
            current(context).database,
            current(context).settings,
            category,
            kinds=kind or (),
            count=count,
            seed=seed,
            output=output,
            detector_kind=detector_kind,
            progress=progress,
        )
    if sheet is not None:
        save_simulation_sheet(report, sheet)
    if json:
        print_json(report)
    else:
        _print(report)
    if sheet is not None:
        note(f"contact sheet: {sheet}")
    failures(report.failed)


def _remove(context: typer.Context, category: str, yes: bool, json: bool) -> None:
    from pgdefect.db.records.simulations import simulated_dependents
    from pgdefect.usecases.simulate.simulate import remove

    database = current(context).database
    preview = simulated_dependents(database, category)
    if yes:
        remove(database, category)
    if json:
        print_json({"deleted": yes, "preview": preview})
        return
    typer.echo(f"{'deleted' if yes else 'would delete'} {preview}, and their files")
    if not yes:
        note("Nothing was deleted; add --yes to do it.")


def _print(report: SimulationReport) -> None:
    from pgdefect.usecases.simulate.simulate import FOUND, cells

    altered = " and ".join(f"{n} {_SOURCES[source]}" for source, n in report.sources.items())
    typer.echo(
        f"{report.category}: {len(report.images)} simulated defects ({report.added} new), seed "
        f"{report.seed}, drawn on {altered}; detector {report.detector.id}, threshold "
        f"{report.detector.threshold:.4g}\n"
    )
    print_table(
        ("", "", "images", "detected", "rate", "in place"),
        [
            (group, name, rate.images, rate.detected, _percent(rate), rate.in_place)
            for group, name, rate in cells(report)
        ],
    )
    typer.echo("")
    sizes = report.sizes
    print_table(
        ("detected", *sizes, f"{FOUND:.0%} from", *(f"at {c}" for c in report.contrasts)),
        [
            (
                kind or "all",
                *(_of(report.rate(kind, size)) for size in sizes),
                report.smallest_found(kind),
                *(report.smallest_found(kind, contrast) for contrast in report.contrasts),
            )
            for kind in (*report.kinds, None)
        ],
    )
    if report.unaltered is not None:
        typer.echo(f"\nThe same images unaltered: {_of(report.unaltered)} rejected.")
    if report.sources.keys() - {"test"}:
        note(
            "The training images may be in the memory bank: where nothing was drawn they look "
            "more normal than a new photograph would. Ingest normal test images for better figures."
        )
    note(f"images and masks: {report.folder}")


def _of(rate: Rate) -> str:
    return f"{rate.detected} of {rate.images}"


def _percent(rate: Rate) -> str:
    return "-" if rate.rate is None else f"{rate.rate:.0%}"
