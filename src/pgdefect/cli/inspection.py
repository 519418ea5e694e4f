"""``pgdefect inspect``: are images anomalous, and where."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pgdefect.cli.context import current
from pgdefect.cli.output import (
    Json,
    failures,
    left_out,
    note,
    print_json,
    print_table,
    progress_bars,
)
from pgdefect.core.detector_kinds import DEFAULT_KIND, KINDS
from pgdefect.core.errors import UsageError
from pgdefect.core.words import either

Kind = Annotated[
    str | None,
    typer.Option(
        help=f"{either(list(KINDS))}, where both are active; {DEFAULT_KIND} is the default."
    ),
]


def register(app: typer.Typer) -> None:
    """Add this module's command to the application."""
    example = "pgdefect inspect new/*.png --category leather --save-maps maps"
    app.command("inspect", epilog=f"Example:  {example}")(inspect_command)


def inspect_command(
    context: typer.Context,
    paths: Annotated[
        list[Path] | None, typer.Argument(metavar="PATH...", help="Files, folders or patterns.")
    ] = None,
    category: Annotated[str | None, typer.Option(help="The product shown.")] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Without PATH: inspect stored images, of this split only."),
    ] = None,
    maps: Annotated[
        Path | None,
        typer.Option("--save-maps", metavar="DIR", help="Write a picture of each anomaly map."),
    ] = None,
    store: Annotated[bool, typer.Option("--store/--no-store", help="Keep the results.")] = True,
    defects: Annotated[
        bool,
        typer.Option(
            "--defects/--no-defects",
            help="Look at anomalous images a second time: regions and embeddings to search by, a "
            "guess at the type of defect. pgdefect embed can do it later.",
        ),
    ] = True,
    keep_patches: Annotated[
        bool,
        typer.Option(
            "--keep-patches",
            help="Store every patch embedding, too, for defect.inspect in SQL: 2 bytes a value, "
            "0.3 MB an image at the default settings.",
        ),
    ] = False,
    kind: Kind = None,
    search: Annotated[
        str | None,
        typer.Option(
            help="PatchCore: hnsw (the default) asks the index in the database; fast does with a "
            "coarser anomaly map and the same score; exact loads the bank: faster for many."
        ),
    ] = None,
    event_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="Names this request: made again, it answers with what was stored the first time "
            "and inspects only what is missing. Without it every run adds inspections; one that "
            "was interrupted is resumed.",
        ),
    ] = None,
    station: Annotated[
        str | None,
        typer.Option(
            help="Where this is, kept with each inspection; else PGDEFECT_STATION or the login."
        ),
    ] = None,
    attributes: Annotated[
        str | None,
        typer.Option(
            metavar="JSON",
            help='Of all photographs of this call: \'{"line": 3, "shift": "late"}\'.',
        ),
    ] = None,
    manifest: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV",
            help="Columns path, part, taken_at; every other one is an attribute of the "
            "photograph. Without PATH it names the files.",
        ),
    ] = None,
    path_pattern: Annotated[
        str | None,
        typer.Option(
            metavar="PATTERN",
            help="What the end of each path says: '{line}/{part}_{taken:%Y%m%dT%H%M%S}.png'. part "
            "and taken are the part and the time, {_x} is left out, others are attributes.",
        ),
    ] = None,
    exif_time: Annotated[
        bool, typer.Option("--exif-time", help="Take the time of a photograph from its EXIF data.")
    ] = False,
    time_zone: Annotated[
        str | None,
        typer.Option(help="Of times without an offset, as Europe/Berlin; else this machine's."),
    ] = None,
    json: Json = False,
) -> None:
    """Say whether images are anomalous, and where.

    Without PATH the category's stored images are inspected. Every inspection is kept: a later one
    of the same image, or another threshold, changes none before it.
    """
    from pgdefect.core.attributes import parse_attributes
    from pgdefect.usecases.common.picture_files import writable_folder
    from pgdefect.usecases.inspect.inspect import inspect
    from pgdefect.usecases.inspect.photo_context import ContextSource
    from pgdefect.usecases.pictures import save_maps

    if category is None:
        raise UsageError("name the category the images show with --category")
    if maps is not None:
        writable_folder(maps)
    with progress_bars() as progress:
        report = inspect(
            current(context).database,
            current(context).settings,
            category,
            paths or (),
            split=split,
            store=store,
            keep_patches=keep_patches,
            defects=defects,
            search=search,  # type: ignore[arg-type]
            kind=kind,
            event_key=event_key,
            station=station or current(context).settings.station,
            context=ContextSource(
                attributes=parse_attributes(attributes) if attributes is not None else {},
                exif_time=exif_time,
                path_pattern=path_pattern,
                manifest=manifest,
                time_zone=time_zone,
            ),
            progress=progress,
        )
        unread = []
        if maps is not None:
            unread = save_maps(report.inspections, report.preprocessing, maps, progress)
    if json:
        print_json(report)
    else:
        print_table(
            (
                *("verdict", "score", "raw", "threshold", "worst at x,y,w,h"),
                *("probably", "known as", "path"),
            ),
            [
                (
                    item.verdict,
                    f"{item.normalized_score:.3f}",
                    item.raw_score,
                    item.threshold,
                    ",".join(map(str, item.worst_box)),
                    item.vote and str(item.vote),
                    item.known_defect_type or item.known_label,
                    item.path,
                )
                for item in report.inspections
            ],
        )
        rejected = sum(item.is_anomalous for item in report.inspections)
        note(f"{rejected} of {len(report.inspections)} images are anomalous")
        if report.resumed:
            note(
                f"{report.resumed} of them had been inspected before the interruption, or under "
                "the same event key"
            )
        if maps is not None:
            note(f"anomaly maps are in {maps}")
    for problem in report.problems:
        note(problem)
    left_out(report.skipped)
    failures([*report.failed, *unread])
