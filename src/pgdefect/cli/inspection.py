"""Commands about images: inspect, search."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgdefect.cli.context import current
from pgdefect.cli.output import failures, note, print_json, print_table, progress_bars
from pgdefect.errors import NotFound, UsageError

if TYPE_CHECKING:
    from pgdefect.pipeline.search import SearchReport
    from pgdefect.types import DetectorKind, Inspection, Neighbor, PatchNeighbor

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
MAX_BANK, MAX_POSITION = 2**63 - 1, 2**31 - 1
Model = Annotated[
    str | None,
    typer.Option(
        help="patchcore or efficient_ad, where both are active; patchcore is the default."
    ),
]
Exact = Annotated[bool, typer.Option("--exact", help="Scan the table instead of its index.")]


def register(app: typer.Typer) -> None:
    """Add this module's commands to the application."""
    for command, example in (
        (inspect, "pgdefect inspect new/*.png --category leather --save-maps maps"),
        (search, "pgdefect search scratch/003.png -k 10 --sheet sheet.png"),
    ):
        app.command(epilog=f"Example:  {example}")(command)


def inspect(
    context: typer.Context,
    paths: Annotated[
        list[Path] | None, typer.Argument(metavar="PATH...", help="Files, folders or patterns.")
    ] = None,
    category: Annotated[str | None, typer.Option(help="The product shown.")] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Without PATH: inspect stored images, of this split only."),
    ] = None,
    save_maps: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write a picture of each anomaly map.")
    ] = None,
    store: Annotated[bool, typer.Option("--store/--no-store", help="Keep the results.")] = True,
    model: Model = None,
    search: Annotated[
        str | None,
        typer.Option(
            help="PatchCore: hnsw (the default) asks the index in the database; fast does with a "
            "coarser anomaly map and the same score; exact loads the bank: faster for many."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Say whether images are anomalous, and where.

    Without PATH the category's stored images are inspected.
    """
    from pgdefect.pipeline.inspect import inspect as use_case
    from pgdefect.pipeline.pictures import save_maps as save
    from pgdefect.pipeline.pictures import writable_folder

    if category is None:
        raise UsageError("name the category the images show with --category")
    if search not in (None, "hnsw", "fast", "exact"):
        raise UsageError(f"--search is hnsw, fast or exact, not {search!r}")
    if paths and split:
        raise UsageError("--split is for stored images; leave it out when naming files")
    if save_maps is not None:
        writable_folder(save_maps)
    with progress_bars() as progress:
        report = use_case(
            current(context).database,
            current(context).settings,
            category,
            paths or (),
            split=split,
            store=store,
            search=search,  # type: ignore[arg-type]
            kind=kind_of(model),
            progress=progress,
        )
        if save_maps is not None:
            save(report.inspections, report.preprocessing, save_maps, progress)
    if json:
        print_json(
            {
                "category": report.category,
                "detector_id": report.detector.id,
                "model": report.detector.kind,
                "threshold": report.detector.threshold,
                "inspections": [inspection_json(item) for item in report.inspections],
                "failed": [{"path": path, "reason": reason} for path, reason in report.failed],
            }
        )
    else:
        print_table(
            ("verdict", "score", "raw", "threshold", "worst at x,y,w,h", "label", "path"),
            [
                (
                    item.verdict,
                    f"{item.normalized_score:.3f}",
                    item.raw_score,
                    item.threshold,
                    ",".join(map(str, item.worst_box)),
                    item.defect_type or item.label,
                    item.path,
                )
                for item in report.inspections
            ],
        )
        rejected = sum(item.is_anomalous for item in report.inspections)
        note(f"{rejected} of {len(report.inspections)} images are anomalous")
        if save_maps is not None:
            note(f"anomaly maps are in {save_maps}")
    failures(report.failed)


def search(
    context: typer.Context,
    query: Annotated[
        str | None,
        typer.Argument(help="A file, or a stored image by id, end of path, start of sha256."),
    ] = None,
    k: Annotated[int, typer.Option("-k", help="How many images to list.")] = 10,
    category: Annotated[str | None, typer.Option(help="The product the query shows.")] = None,
    model: Model = None,
    all_categories: Annotated[
        bool, typer.Option("--all-categories", help="Also list images of other categories.")
    ] = False,
    label: Annotated[str | None, typer.Option(help="Only normal or anomalous images.")] = None,
    defect_type: Annotated[str | None, typer.Option(help="Only images of this defect.")] = None,
    exclude_group: Annotated[
        bool, typer.Option("--exclude-group", help="No image of the query's own part.")
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
    exact: Exact = False,
    json: Json = False,
) -> None:
    """List the stored images most like one; an anomalous one is reported as such first."""
    if label not in (None, "normal", "anomalous"):
        raise UsageError(f"--label is normal or anomalous, not {label!r}")
    if (query is None) == (patch is None):
        raise UsageError("name an image, or a memory-bank vector with --patch BANK:POSITION")
    if patch is not None:
        _search_patch(context, patch, k, json)
        return
    from pgdefect.pipeline.pictures import save_sheet, writable_folder
    from pgdefect.pipeline.search import search as use_case

    assert query is not None
    if sheet is not None:
        writable_folder(sheet.parent)
    report = use_case(
        current(context).database,
        current(context).settings,
        query,
        k=k,
        category=category,
        all_categories=all_categories,
        label=label,
        defect_type=defect_type,
        exclude_group=exclude_group,
        simulated=simulated,
        exact=exact,
        kind=kind_of(model),
    )
    if sheet is not None:
        save_sheet(report, report.preprocessing, sheet)
    if json:
        print_json(
            {
                "query": inspection_json(report.inspection),
                "neighbors": [neighbor_json(neighbor) for neighbor in report.neighbors],
            }
        )
    else:
        print_search(report)
    if sheet is not None:
        note(f"contact sheet: {sheet}")


def kind_of(model: str | None) -> DetectorKind | None:
    """The kind of detector that --model names. Raises UsageError."""
    if model not in (None, "patchcore", "efficient_ad"):
        raise UsageError(f"--model is patchcore or efficient_ad, not {model!r}")
    return model  # type: ignore[return-value]


def print_search(report: SearchReport) -> None:
    """The verdict, then the neighbors."""
    inspection = report.inspection
    typer.echo(
        f"{inspection.verdict.upper()}: {inspection.path} ({inspection.category}), score "
        f"{inspection.normalized_score:.3f}, raw {inspection.raw_score:.4g}, "
        f"threshold {inspection.threshold:.4g}"
    )
    print_table(
        ("rank", "distance", "similarity", "category", "label", "defect type", "path"),
        [
            (
                n.rank,
                f"{n.distance:.4f}",
                f"{n.similarity:.4f}",
                n.image.category,
                n.image.label,
                n.image.defect_shown,
                n.image.path,
            )
            for n in report.neighbors
        ],
    )


def inspection_json(inspection: Inspection) -> dict[str, Any]:
    """An inspection as the CLI's JSON shows it; the map itself stays in the database."""
    return {
        "path": inspection.path,
        "category": inspection.category,
        "verdict": inspection.verdict,
        "normalized_score": inspection.normalized_score,
        "raw_score": inspection.raw_score,
        "threshold": inspection.threshold,
        "worst_box": list(inspection.worst_box),
        "worst_cell": [inspection.scores.worst_row, inspection.scores.worst_col],
        "label": inspection.label,
        "defect_type": inspection.defect_type,
        "detector_id": inspection.detector_id,
        "image_id": inspection.image_id,
        "inspection_id": inspection.inspection_id,
    }


def neighbor_json(neighbor: Neighbor) -> dict[str, Any]:
    """A neighbor as the CLI's JSON shows it."""
    return {
        "rank": neighbor.rank,
        "distance": neighbor.distance,
        "similarity": neighbor.similarity,
        "image_id": neighbor.image.id,
        "category": neighbor.image.category,
        "label": neighbor.image.label,
        "defect_type": neighbor.image.defect_type,
        "split": neighbor.image.split,
        "path": neighbor.image.path,
    }


def _search_patch(context: typer.Context, patch: str, k: int, json: bool) -> None:
    from pgdefect.db.queries import similar_patches
    from pgdefect.pipeline.search import check_k

    bank, _, position = patch.partition(":")
    if not (bank.isdigit() and position.isdigit()):
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
