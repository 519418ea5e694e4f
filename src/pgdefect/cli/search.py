"""``pgdefect search``: which stored images show the same."""

from __future__ import annotations

import re
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from pgdefect.cli.context import current
from pgdefect.cli.inspection import Kind
from pgdefect.cli.output import Json, note, print_json, print_table, visible
from pgdefect.core.errors import NotFound, UsageError

if TYPE_CHECKING:
    from datetime import datetime

    from pgdefect.core.types import PatchNeighbor
    from pgdefect.usecases.search.search import SearchReport

MAX_BANK, MAX_POSITION = 2**63 - 1, 2**31 - 1


def register(app: typer.Typer) -> None:
    """Add this module's command to the application."""
    example = "pgdefect search scratch/003.png -k 10 --sheet sheet.png"
    app.command("search", epilog=f"Example:  {example}")(search_command)


def search_command(
    context: typer.Context,
    query: Annotated[
        str | None,
        typer.Argument(help="A file, or a stored image by id, end of path, start of sha256."),
    ] = None,
    k: Annotated[int, typer.Option("-k", help="How many images to list.")] = 10,
    by: Annotated[
        str | None,
        typer.Option(
            help="What to compare: picture (the whole image), defect (what departs from normal "
            "in it), region (its worst region with the best one of each image). The default is "
            "defect for an anomalous image, picture for a normal one."
        ),
    ] = None,
    like: Annotated[
        list[str] | None, typer.Option("--like", metavar="IMAGE", help="A further example.")
    ] = None,
    unlike: Annotated[
        list[str] | None, typer.Option("--unlike", metavar="IMAGE", help="A counter-example.")
    ] = None,
    crop: Annotated[
        str | None,
        typer.Option(metavar="X,Y,W,H", help="Look for what this part of the image shows."),
    ] = None,
    region: Annotated[
        int | None,
        typer.Option(metavar="ID", help="Instead of an image: a stored region (defect.regions)."),
    ] = None,
    category: Annotated[str | None, typer.Option(help="The product the query shows.")] = None,
    kind: Kind = None,
    all_categories: Annotated[
        bool, typer.Option("--all-categories", help="Also list images of other categories.")
    ] = False,
    label: Annotated[str | None, typer.Option(help="Only normal or anomalous images.")] = None,
    defect_type: Annotated[str | None, typer.Option(help="Only images of this defect.")] = None,
    split: Annotated[
        str | None, typer.Option(help="Only images of this split: train, test, production.")
    ] = None,
    part: Annotated[str | None, typer.Option(help="Only images of this part.")] = None,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only images stored since: 2026-03-31.")
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only images stored before.")
    ] = None,
    attributes: Annotated[
        str | None,
        typer.Option(metavar="JSON", help='Only images with these: {"line": 3}.'),
    ] = None,
    max_distance: Annotated[
        float | None, typer.Option(help="Only images as near as this; cosine distance, 0 to 2.")
    ] = None,
    exclude_part: Annotated[
        bool, typer.Option("--exclude-part", help="No image of the query's own part.")
    ] = False,
    show_all: Annotated[
        bool, typer.Option("--all", help="List near-duplicates one by one, not as a count.")
    ] = False,
    simulated: Annotated[
        bool, typer.Option("--simulated", help="Also list images with simulated defects.")
    ] = False,
    sheet: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Write a contact sheet.")
    ] = None,
    patch: Annotated[
        str | None,
        typer.Option(metavar="BANK:POSITION", help="Instead: vectors nearest to one of a bank."),
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Scan the table instead of its index.")
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say whether index or scan was chosen, and why.")
    ] = False,
    json: Json = False,
) -> None:
    """List the stored images most like one; an anomalous one is reported as such first."""
    examples = [*([query] if query is not None else []), *(like or ())]
    if sum((bool(examples), region is not None, patch is not None)) != 1:
        raise UsageError(
            "name an image, a stored region with --region ID, or a memory-bank vector with "
            "--patch BANK:POSITION"
        )
    if patch is not None:
        _search_patch(context, patch, k, json)
        return
    from pgdefect.core.attributes import parse_attributes
    from pgdefect.usecases.pictures import save_sheet, writable_sheet
    from pgdefect.usecases.search.search import Query, SearchOptions, search

    if sheet is not None:
        writable_sheet(sheet)
    report = search(
        current(context).database,
        current(context).settings,
        Query(examples, unlike or (), _box(crop), region),
        SearchOptions(
            k=k,
            by=by,  # type: ignore[arg-type]
            all_categories=all_categories,
            label=label,
            defect_type=defect_type,
            split=split,
            part=part,
            since=_time("--since", since),
            until=_time("--until", until),
            attributes=None if attributes is None else parse_attributes(attributes),
            max_distance=max_distance,
            exclude_part=exclude_part,
            simulated=simulated or split == "simulated",
            fold=not show_all,
            exact=exact,
            explain=explain,
            kind=kind,
        ),
        category=category,
    )
    if sheet is not None:
        save_sheet(report, sheet)
    if json:
        print_json(report)
    else:
        print_search(report)
        if not report.neighbors:
            note("no other stored image is to be compared with under these filters")
        _say_missing(report)
    if explain:
        note(str(report.plan))
    if sheet is not None:
        note(f"contact sheet: {sheet}")


def _say_missing(report: SearchReport) -> None:
    """Stored images that could not be listed, and the command that helps."""
    if report.missing is None or not report.missing.missing:
        return
    kind, images = ("image", "images") if report.by == "picture" else ("defect", "anomalous images")
    commands = "; ".join(f"pgdefect embed {quote(name)}" for name in report.missing.categories)
    note(
        f"{report.missing.missing:,} of {report.missing.looked_at:,} {images} of "
        f"{', '.join(report.missing.categories)} have no {kind} embedding yet and cannot be "
        f"found; make them with: {commands}"
    )


def print_search(report: SearchReport) -> None:
    """The verdict, then the neighbors."""
    inspection = report.inspection
    if inspection is None:
        typer.echo(visible(f"{report.query}: {report.image.path if report.image else ''}"))
    else:
        typer.echo(
            f"{inspection.verdict.upper()}: {visible(inspection.path)} ({inspection.category}), "
            f"score {inspection.normalized_score:.3f}, raw {inspection.raw_score:.4g}, "
            f"threshold {inspection.threshold:.4g}"
        )
    if report.vote is not None and report.vote.is_unlike:
        typer.echo(
            f"{report.vote}: {report.vote.distance:.4f} from the nearest, and known ones of a type "
            f"lie within {report.vote.limit:.4f} of one another"
        )
    elif report.vote is not None:
        typer.echo(f"probably {report.vote}")
    print_table(
        (
            *("rank", f"distance by {report.by}", "category", "known label", "known defect type"),
            *("region x,y,w,h", "part", "copies", "path"),
        ),
        [
            (
                n.rank,
                f"{n.distance:.4f}",
                n.image.category,
                n.image.known_label,
                n.image.defect_shown,
                n.region and ",".join(map(str, n.region.box)),
                n.image.part,
                n.copies if n.copies > 1 else None,
                n.image.path,
            )
            for n in report.neighbors
        ],
    )


def _box(crop: str | None) -> tuple[int, int, int, int] | None:
    if crop is None:
        return None
    numbers = crop.split(",")
    if len(numbers) != 4 or not all(re.fullmatch(r"\s*[0-9]{1,9}\s*", n) for n in numbers):
        raise UsageError(f"--crop is X,Y,WIDTH,HEIGHT in pixels, four numbers, not {crop!r}")
    x, y, width, height = (int(n) for n in numbers)
    return x, y, width, height


def _time(option: str, word: str | None) -> datetime | None:
    from datetime import datetime

    if word is None:
        return None
    try:
        # Without an offset it is meant as this machine's clock shows it.
        return datetime.fromisoformat(word).astimezone()
    except (ValueError, OverflowError):
        raise UsageError(f"{option} is a date or time such as 2026-03-31, not {word!r}") from None


def _search_patch(context: typer.Context, patch: str, k: int, json: bool) -> None:
    from pgdefect.db.search.queries import similar_patches
    from pgdefect.usecases.search.search import check_k

    bank, _, position = patch.partition(":")
    if not all(re.fullmatch("[0-9]{1,99}", number) for number in (bank, position)):
        raise UsageError(f"--patch is BANK:POSITION, two numbers, not {patch!r}")
    check_k(k)
    if int(bank) > MAX_BANK or int(position) > MAX_POSITION:
        raise NotFound(f"there is no memory-bank vector {patch}; banks: pgdefect detectors")
    found: list[PatchNeighbor] = similar_patches(
        current(context).database, int(bank), int(position), k
    )
    if json:
        print_json(found)
        return
    print_table(
        ("rank", "position", "distance", "similarity", "row", "col", "image", "path"),
        [
            (
                n.rank,
                n.position,
                f"{n.distance:.4f}",
                n.similarity,
                n.row,
                n.col,
                n.image_id,
                n.path,
            )
            for n in found
        ],
    )
