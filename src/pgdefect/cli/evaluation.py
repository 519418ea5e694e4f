"""``pgdefect evaluate``: what a detector is worth on labeled images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgdefect.cli.context import current
from pgdefect.cli.inspection import Kind
from pgdefect.cli.output import Json, failures, note, print_json, print_table, progress_bars
from pgdefect.core.errors import DatasetError, UsageError

if TYPE_CHECKING:
    from pgdefect.core.types import DetectorKind
    from pgdefect.db.connection.engine import Database
    from pgdefect.usecases.evaluate.evaluate import Evaluation
    from pgdefect.usecases.evaluate.retrieval import RetrievalReport

FIGURES = {
    "image_auroc": "image AUROC",
    "image_f1_max": "image F1-max",
    "average_precision": "average precision",
    "pixel_auroc": "pixel AUROC",
    "pixel_f1_max": "pixel F1-max",
    "aupro": "AUPRO (FPR up to 0.3)",
    "detection_rate": "detection rate",
    "false_reject_rate": "false-reject rate",
}
RETRIEVAL_FIGURES = {
    "precision_at_1": "precision@1",
    "precision_at_10": "precision@10",
    "mean_average_precision": "mAP",
    "vote_right": "vote right",
    "chance": "chance",
}
MOST_PAIRS = 10
"""Named of the parts that may leak."""


def register(app: typer.Typer) -> None:
    """Add this module's command to the application."""
    app.command("evaluate", epilog="Example:  pgdefect evaluate leather --output report")(
        evaluate_command
    )


def evaluate_command(
    context: typer.Context,
    categories: Annotated[
        list[str] | None, typer.Argument(metavar="CATEGORY...", help="Categories to evaluate.")
    ] = None,
    all_categories: Annotated[
        bool, typer.Option("--all", help="Evaluate every category that has an active detector.")
    ] = False,
    split: Annotated[str, typer.Option(help="The labeled images of this split.")] = "test",
    kind: Kind = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Write results.csv and results.md, and plots for each category."
        ),
    ] = None,
    save_maps: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write a picture of each anomaly map, all on one scale."),
    ] = None,
    bootstrap: Annotated[
        int, typer.Option(help="Resamples that make the 95 % intervals; 0 makes none.")
    ] = 1000,
    seed: Annotated[int, typer.Option(help="Decides which groups are resampled.")] = 0,
    drop_leaks: Annotated[
        bool,
        typer.Option("--drop-leaks", help="Leave out images whose part was trained on."),
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Inspect also what has been inspected already.")
    ] = False,
    search: Annotated[
        str, typer.Option(help="exact or hnsw: how what is missing is inspected.")
    ] = "exact",
    retrieval: Annotated[
        bool,
        typer.Option("--retrieval", help="Instead: how well defects of one type find each other."),
    ] = False,
    without_parts: Annotated[
        bool,
        typer.Option(
            "--without-parts", help="--retrieval of images of unnamed parts: each is one."
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Measure how well active detectors tell defects apart, and where they are.

    The result is stored: SELECT * FROM defect.evaluations.
    """
    if without_parts and not retrieval:
        raise UsageError("--without-parts goes with --retrieval")
    if retrieval:
        names = _names(current(context).database, categories, all_categories, None)
        _evaluate_retrieval(context, names, split, without_parts, json)
        return
    from pgdefect.usecases.common.files import folder_name
    from pgdefect.usecases.common.picture_files import writable_folder
    from pgdefect.usecases.evaluate.evaluate import EvaluateOptions, evaluate, mean_figures
    from pgdefect.usecases.evaluate.evaluation_files import write_maps, write_plots, write_results

    options = EvaluateOptions(
        split=split,
        kind=kind,
        search=search,  # type: ignore[arg-type]
        again=again,
        drop_leaks=drop_leaks,
        bootstrap=bootstrap,
        seed=seed,
    )
    database = current(context).database
    names = _names(database, categories, all_categories, options.kind)
    for folder in (output, save_maps):
        if folder is not None:
            writable_folder(folder)
    evaluations: list[Evaluation] = []
    failed: list[tuple[str, str]] = []
    skipped: list[str] = []
    with progress_bars() as progress:
        for name in names:
            try:
                report = evaluate(
                    database, current(context).settings, name, options, progress=progress
                )
            except DatasetError as error:
                if not all_categories:
                    raise
                skipped.append(f"{name} was not evaluated: {error}")
                continue
            evaluations.append(report)
            failed += report.failed
        if output is not None and evaluations:
            write_results(evaluations, output)
        for report in evaluations:
            for folder, write in ((output, write_plots), (save_maps, write_maps)):
                if folder is not None:
                    place = folder / folder_name(report.category)
                    writable_folder(place)
                    write(report, place)
    means = mean_figures(evaluations) if len(evaluations) > 1 else None
    if json:
        print_json(
            {
                "evaluations": [item.to_json() for item in evaluations],
                "mean": means and {**means[0], "intervals": means[1]},
            }
        )
    else:
        for item in evaluations:
            _print(item)
        if means is not None:
            _print_means(evaluations, *means)
    _remarks(evaluations, drop_leaks)
    for folder, what in ((output, "tables and plots"), (save_maps, "anomaly maps")):
        if folder is not None and evaluations:
            note(f"{what} are in {folder}")
    for line in skipped:
        note(line)
    failures(failed)
    if skipped:
        raise typer.Exit(1)


def _names(
    database: Database, categories: list[str] | None, every: bool, kind: DetectorKind | None
) -> list[str]:
    """The categories named, or all with an active detector, of the kind if one is asked for."""
    from pgdefect.db.records.catalog import category_id
    from pgdefect.db.records.summaries import list_categories, list_detectors

    if every == bool(categories):
        raise UsageError("name the categories to evaluate, or take all with --all")
    if categories:
        with database.connect() as connection:
            for name in categories:  # a slip in the last name shows before the first is begun
                category_id(connection, name)
        return list(dict.fromkeys(categories))
    active = {d.category for d in list_detectors(database) if d.active and kind in (None, d.kind)}
    found = [c.name for c in list_categories(database) if c.retired_at is None]
    names = [name for name in dict.fromkeys(found) if name in active]
    if not names:
        which = f"active {kind} detector" if kind else "active detector"
        raise UsageError(f"no category has an {which}; train one with: pgdefect train NAME")
    return names


def _print(evaluation: Evaluation) -> None:
    typer.echo(
        f"{evaluation.category}: {evaluation.normal_images} normal and "
        f"{evaluation.anomalous_images} anomalous {evaluation.split} images; "
        f"{evaluation.detector.kind} version {evaluation.detector.version} (detector "
        f"{evaluation.detector.id}), threshold {evaluation.threshold:.4g}\n"
    )
    figures = evaluation.figures
    remarks = {
        "image_f1_max": _at(figures["image_f1_max_threshold"]),
        "pixel_f1_max": _at(figures["pixel_f1_max_threshold"]),
        "detection_rate": f"{figures['escapes']} of {evaluation.anomalous_images} escape",
        "false_reject_rate": f"{figures['false_rejects']} of {evaluation.normal_images} rejected",
    }
    print_table(
        ("figure", "value", "95 % interval", "remark"),
        [
            (
                title,
                _value(figures[name]),
                _interval(evaluation.intervals.get(name)),
                remarks.get(name, ""),
            )
            for name, title in FIGURES.items()
        ],
    )
    typer.echo("")
    print_table(
        ("defect type", "images", "found", "image AUROC", "95 % interval"),
        [
            (
                item.defect_type,
                item.images,
                f"{item.detected} ({item.detection_rate:.0%})",
                _value(item.image_auroc),
                _interval(item.intervals.get("image_auroc")),
            )
            for item in evaluation.defect_types
        ],
    )
    typer.echo("")


def _print_means(
    evaluations: list[Evaluation],
    means: dict[str, float | None],
    intervals: dict[str, tuple[float, float]],
) -> None:
    rows = [
        (item.category, *(_value(item.figures[name]) for name in means)) for item in evaluations
    ]
    rows.append(("mean", *(_value(value) for value in means.values())))
    rows.append(("95 % interval", *(_interval(intervals.get(name)) for name in means)))
    print_table(("category", *(FIGURES[name].partition(" (")[0] for name in means)), rows)


def _remarks(evaluations: list[Evaluation], drop_leaks: bool) -> None:
    for item in evaluations:
        for text in item.notes:
            note(f"{item.category}: {text}")
        if item.look_alikes:
            note(
                f"warning: {item.category}: {len(item.look_alikes)} {item.split} parts may have "
                "been learned from under other names: their photographs are more alike than "
                "those of one part mostly are. Where a pair shows one part, give it one name, "
                "ingest again and train again:"
            )
        for pair in item.look_alikes[:MOST_PAIRS]:
            note(f"  {pair}")
        if len(item.look_alikes) > MOST_PAIRS:
            note(f"  and {len(item.look_alikes) - MOST_PAIRS} more; --json has all")
        if not item.leaks:
            continue
        flattered = sum(leak.sides[0] == item.split for leak in item.leaks)
        if flattered and drop_leaks:
            note(f"{item.category}: {item.dropped_images} images that leak were left out:")
        elif flattered:
            note(
                f"warning: {item.category}: the split leaks, which flatters the figures; "
                "leave these images out with --drop-leaks:"
            )
        else:
            note(
                f"warning: {item.category}: the threshold was calibrated on what was trained on; "
                "train again after fixing the parts:"
            )
        for leak in item.leaks:
            note(f"  {leak}")


def _value(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}"


def _interval(interval: tuple[float, float] | None) -> str | None:
    return None if interval is None else f"{interval[0]:.3f} – {interval[1]:.3f}"


def _at(threshold: float | None) -> str:
    return "" if threshold is None else f"at {threshold:.4g}"


def _evaluate_retrieval(
    context: typer.Context, names: list[str], split: str, without_parts: bool, json: bool
) -> None:
    """Print how well defects of one type find each other, beside what chance would give."""
    from pgdefect.usecases.evaluate.retrieval import evaluate_retrieval

    with progress_bars() as progress:
        reports = [
            evaluate_retrieval(
                current(context).database,
                current(context).settings,
                name,
                split=split,
                without_parts=without_parts,
                progress=progress,
            )
            for name in names
        ]
    if json:
        print_json(reports)
    else:
        for report in reports:
            _print_retrieval(report)
    failures([item for report in reports for item in report.failed])


def _print_retrieval(report: RetrievalReport) -> None:
    typer.echo(
        f"{report.category}: {report.images} anomalous {report.split} images of "
        f"{report.parts} parts; no image of the query's own part is counted\n"
    )
    for mean in ("over_queries", "over_types"):
        print_table(
            (f"mean {mean.replace('_', ' ')}", *RETRIEVAL_FIGURES.values()),
            [
                (f"by {by}", *(f"{getattr(figures, mean)[key]:.3f}" for key in RETRIEVAL_FIGURES))
                for by, figures in report.by.items()
            ],
        )
        typer.echo()
    print_table(
        ("defect type", "queries", *RETRIEVAL_FIGURES.values()),
        [
            (name, int(values["queries"]), *(f"{values[key]:.3f}" for key in RETRIEVAL_FIGURES))
            for name, values in report.by["defect"].by_type.items()
        ],
    )
    if unanswerable := report.by["defect"].unanswerable:
        note(f"{unanswerable} images have a defect type that no other part shows")
