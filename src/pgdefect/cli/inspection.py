"""``pgdefect inspect``: are images anomalous, and where."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgdefect.cli.context import current
from pgdefect.cli.output import failures, note, print_json, print_table, progress_bars
from pgdefect.core.errors import UsageError

if TYPE_CHECKING:
    from pgdefect.core.types import DetectorKind, Inspection, Vote

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Model = Annotated[
    str | None,
    typer.Option(
        help="patchcore or efficient_ad, where both are active; patchcore is the default."
    ),
]


def register(app: typer.Typer) -> None:
    """Add this module's command to the application."""
    example = "pgdefect inspect new/*.png --category leather --save-maps maps"
    app.command(epilog=f"Example:  {example}")(inspect)


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
    from pgdefect.usecases.common.picture_files import writable_folder
    from pgdefect.usecases.inspect.inspect import inspect as use_case
    from pgdefect.usecases.pictures import save_maps as save

    if category is None:
        raise UsageError("name the category the images show with --category")
    if search not in (None, "hnsw", "fast", "exact"):
        raise UsageError(f"--search is hnsw, fast or exact, not {search!r}")
    check_split(split)
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
            keep_patches=keep_patches,
            defects=defects,
            search=search,  # type: ignore[arg-type]
            kind=kind_of(model),
            progress=progress,
        )
        unread = []
        if save_maps is not None:
            unread = save(report.inspections, report.preprocessing, save_maps, progress)
    if json:
        print_json(
            {
                "category": report.category,
                "detector_id": report.detector.id,
                "model": report.detector.kind,
                "threshold": report.detector.threshold,
                "inspections": [inspection_json(item) for item in report.inspections],
                "failed": [{"path": path, "reason": reason} for path, reason in report.failed],
                "problems": report.problems,
            }
        )
    else:
        print_table(
            (
                *("verdict", "score", "raw", "threshold", "worst at x,y,w,h"),
                *("probably", "label", "path"),
            ),
            [
                (
                    item.verdict,
                    f"{item.normalized_score:.3f}",
                    item.raw_score,
                    item.threshold,
                    ",".join(map(str, item.worst_box)),
                    item.vote and str(item.vote),
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
    for problem in report.problems:
        note(problem)
    failures([*report.failed, *unread])


def check_split(split: str | None) -> None:
    """Raises UsageError for a word that is no split of images."""
    if split not in (None, "train", "test", "production", "simulated"):
        raise UsageError(f"--split is train, test, production or simulated, not {split!r}")


def kind_of(model: str | None) -> DetectorKind | None:
    """The kind of detector that --model names. Raises UsageError."""
    if model not in (None, "patchcore", "efficient_ad"):
        raise UsageError(f"--model is patchcore or efficient_ad, not {model!r}")
    return model  # type: ignore[return-value]


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
        "regions": [
            {
                "box": list(region.box),
                "area": region.area,
                "peak_score": region.peak_score,
                "mean_score": region.mean_score,
            }
            for region in (inspection.defect.regions if inspection.defect else ())
        ],
        "probable_defect_type": inspection.vote and inspection.vote.defect_type,
        "vote": inspection.vote and vote_json(inspection.vote),
    }


def vote_json(vote: Vote) -> dict[str, Any]:
    """A guess at the defect type, with its ground, as the CLI's JSON shows it."""
    return {"counts": dict(vote.counts), "support": vote.support, "needed": vote.needed}
