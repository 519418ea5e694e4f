"""``pgdefect evaluate --retrieval`` and ``pgdefect embed``: searching by defect."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgdefect.cli.context import current
from pgdefect.cli.output import failures, note, print_json, print_table, progress_bars

if TYPE_CHECKING:
    from pgdefect.usecases.evaluate.retrieval import RetrievalReport


def register(app: typer.Typer) -> None:
    """Add this module's command to the application."""
    app.command(epilog="Example:  pgdefect embed leather")(embed)


def embed(
    context: typer.Context,
    category: Annotated[str, typer.Argument(help="The product.")],
    again: Annotated[
        bool, typer.Option("--again", help="Also those that the active detector made before.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Make the embeddings that searches need: all that are missing, or of an older detector.

    Image embeddings of all images; defect embeddings and regions of anomalous ones, after
    training anew or a review. Verdicts stay as they are.
    """
    from pgdefect.usecases.inspect.embed import embed as use_case

    with progress_bars() as progress:
        report = use_case(
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


def evaluate_retrieval(
    context: typer.Context, names: list[str], split: str, without_groups: bool, json: bool
) -> None:
    """Print how well defects of one type find each other, beside what chance would give."""
    from pgdefect.usecases.evaluate.retrieval import evaluate_retrieval as use_case

    with progress_bars() as progress:
        reports = [
            use_case(
                current(context).database,
                current(context).settings,
                name,
                split=split,
                without_groups=without_groups,
                progress=progress,
            )
            for name in names
        ]
    if json:
        print_json([_json(report) for report in reports])
    else:
        for report in reports:
            _print(report)
    failures([item for report in reports for item in report.failed])


FIGURES = {
    "precision_at_1": "precision@1",
    "precision_at_10": "precision@10",
    "mean_average_precision": "mAP",
    "vote_right": "vote right",
    "chance": "chance",
}


def _json(report: RetrievalReport) -> dict[str, Any]:
    """The figures by defect, over queries, on top; all others below."""
    return {
        "category": report.category,
        "detector_id": report.detector_id,
        "split": report.split,
        "images": report.images,
        "parts": report.parts,
        "unanswerable": report.by["defect"].unanswerable,
        **{key: report.by["defect"].over_queries[key] for key in FIGURES},
        "by": {
            by: {
                "over_queries": figures.over_queries,
                "over_types": figures.over_types,
                "by_type": figures.by_type,
            }
            for by, figures in report.by.items()
        },
        "failed": [{"path": path, "reason": reason} for path, reason in report.failed],
    }


def _print(report: RetrievalReport) -> None:
    typer.echo(
        f"{report.category}: {report.images} anomalous {report.split} images of "
        f"{report.parts} parts; no image of the query's own part is counted\n"
    )
    for mean in ("over_queries", "over_types"):
        print_table(
            (f"mean {mean.replace('_', ' ')}", *FIGURES.values()),
            [
                (f"by {by}", *(f"{getattr(figures, mean)[key]:.3f}" for key in FIGURES))
                for by, figures in report.by.items()
            ],
        )
        typer.echo()
    print_table(
        ("defect type", "queries", *FIGURES.values()),
        [
            (name, int(values["queries"]), *(f"{values[key]:.3f}" for key in FIGURES))
            for name, values in report.by["defect"].by_type.items()
        ],
    )
    if unanswerable := report.by["defect"].unanswerable:
        note(f"{unanswerable} images have a defect type that no other part shows")
