"""The command train."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from shlex import quote
from typing import TYPE_CHECKING, Any

import typer

from pgdefect.cli import train_parameters as given
from pgdefect.cli.context import current
from pgdefect.cli.output import Json, failures, note, print_json, print_table, progress_bars
from pgdefect.core.detector_kinds import DEFAULT_KIND
from pgdefect.core.errors import TrainingError, UsageError

if TYPE_CHECKING:
    from pgdefect.db.connection.engine import Database
    from pgdefect.usecases.train.options import Options
    from pgdefect.usecases.train.report import TrainingReport

NO_SETTINGS = {"categories", "all_categories", "kind", "json"}
"""Parameters of the command that are no settings of a training."""
MAX_NAMED = 10
"""Outliers of one training that are named."""


def register(app: typer.Typer) -> None:
    """Add this module's command to the application."""
    app.command("train", epilog="Example:  pgdefect train leather --coreset-ratio 0.1")(
        train_command
    )


def train_command(
    context: typer.Context,
    categories: given.Categories = None,
    all_categories: given.AllCategories = False,
    kind: given.Kind = DEFAULT_KIND,
    backbone: given.Backbone = "efficientnet_lite0",
    layers: given.Layers = None,
    layer_weights: given.LayerWeights = None,
    weights: given.Weights = None,
    image_size: given.ImageSize = "256",
    resize: given.Resize = None,
    local_contrast: given.LocalContrast = 0.1,
    center_crop: given.CenterCrop = None,
    coreset_ratio: given.CoresetRatio = 0.1,
    max_vectors: given.MaxVectors = 20_000,
    num_neighbors: given.NumNeighbors = 1,
    worst_share: given.WorstShare = None,
    holdout: given.Holdout = None,
    false_reject_rate: given.FalseRejectRate = 0.05,
    leave_out_outliers: given.LeaveOutOutliers = False,
    transform: given.Transform = "centered",
    pca_dim: given.PcaDim = 192,
    whiten: given.Whiten = None,
    metric: given.Metric = "cosine",
    precision: given.Precision = "half",
    max_patches: given.MaxPatches = None,
    seed: given.Seed = 0,
    batch_size: given.BatchSize = 8,
    device: given.Device = "cpu",
    model_size: given.ModelSize = "small",
    max_steps: given.MaxSteps = 70_000,
    learning_rate: given.LearningRate = 1e-4,
    teacher_weights: given.TeacherWeights = None,
    imagenette_dir: given.ImagenetteDir = None,
    json: Json = False,
) -> None:
    """Learn what is normal from a category's normal training images.

    The new detector becomes the category's active one of its kind; older ones are kept.
    """
    options = _options(context, kind)
    names = _names(current(context).database, categories or [], all_categories)
    reports = _train_each(context, names, options)
    for report in reports:
        for line in getattr(report, "notes", ()):
            note(f"{report.category}: {line}")
    if json:
        print_json(reports)
    elif reports:
        from pgdefect.core.thresholds import promise

        print_table(*_trained(reports))
        for report in reports:
            for line in promise(getattr(report, "rule", {})):
                typer.echo(f"{report.category}: {line}")
    failures([item for report in reports for item in report.failed])
    if len(reports) < len(names):
        raise typer.Exit(1)


def _options(context: typer.Context, kind: str) -> Options:
    """The options that were given; what was left out is the default of the kind.

    Raises UsageError where they do not fit.
    """
    from pgdefect.usecases.train.choose import training_options

    given = {
        name: value
        for name, value in context.params.items()
        if name not in NO_SETTINGS
        and (source := context.get_parameter_source(name))
        and source.name == "COMMANDLINE"
    }
    if "layer_weights" in given:
        given["layer_weights"] = _layer_weights(given["layer_weights"])
    return training_options(kind, given)


def _names(database: Database, categories: list[str], every: bool) -> list[str]:
    """The categories to train. Raises where one of them does not exist."""
    from pgdefect.db.records.catalog import category_id
    from pgdefect.db.records.summaries import list_categories

    if every == bool(categories):
        raise UsageError("name the categories to train, or take all with --all")
    names = categories or [c.name for c in list_categories(database) if c.retired_at is None]
    if not names:
        raise UsageError(
            "there is no category yet; add one with: pgdefect ingest PATH --category NAME"
        )
    with database.connect() as connection:
        for name in names:  # a slip in the last name shows before the first is trained
            category_id(connection, name)
    return names


def _train_each(
    context: typer.Context, names: Sequence[str], options: Options
) -> list[TrainingReport]:
    """Train one after the other; of several, one that cannot be trained does not stop the rest."""
    from pgdefect.usecases.train.choose import kind_of, train_with
    from pgdefect.usecases.train.training_run import TrainingRun

    settings, database = current(context).settings, current(context).database
    reports: list[TrainingReport] = []
    with ExitStack() as stack:
        run = None
        if kind_of(options).resumes:
            run = stack.enter_context(TrainingRun(settings, database, names, options))
        for name in names:
            try:
                with progress_bars() as progress:
                    report = train_with(
                        database, settings, name, options, run=run, progress=progress
                    )
            except TrainingError as error:
                if len(names) == 1:
                    raise
                note(f"pgdefect: {error}")
                continue
            reports.append(report)
            _say_resumed(report)
            note(f"{name}: detector {report.detector_id} is active")
            _say_outliers(report)
    return reports


def _say_resumed(report: TrainingReport) -> None:
    """What an interrupted training had done."""
    resumed = getattr(report, "resumed_images", 0)  # some kinds start over
    if getattr(report, "already_stored", False):
        note(
            f"{report.category}: the interrupted training had already stored detector "
            f"{report.detector_id}; what was left to do is done"
        )
    elif resumed:
        note(
            f"{report.category}: reused {resumed:,} of "
            f"{getattr(report, 'extracted_images', resumed):,} images extracted before"
        )


def _say_outliers(report: TrainingReport) -> None:
    """Normal images that scored far outside the rest, and what they would have done."""
    if not report.outliers:
        return
    count = len(report.outliers)
    note(
        f"{report.category}: {count} of {report.held_out_images} scored normal images "
        f"{'scores' if count == 1 else 'score'} far outside the rest. The threshold is "
        f"{report.threshold:.4g} without {'it' if count == 1 else 'them'}"
        + (
            f" and would be {report.threshold_with_outliers:.4g} with"
            if report.threshold_with_outliers is not None
            else ""
        )
    )
    for image in report.outliers[:MAX_NAMED]:
        learned = "the bank has learned it" if image.in_bank else "the bank has not learned it"
        note(f"  image {image.image_id}, score {image.raw_score:.4g}, {learned}: {image.path}")
    if count > MAX_NAMED:
        note(f"  and {count - MAX_NAMED} more: pgdefect review --queue {quote(report.category)}")
    again = f"pgdefect train {quote(report.category)}"
    note(
        "A defect among them hides others like it until the bank is trained without it: say what "
        "each is with pgdefect review IMAGE --label normal (it stays) or anomalous, then "
        f"{again}; or leave them out unseen with {again} --leave-out-outliers (a rare but right "
        "part is then rejected)"
    )


def _trained(
    reports: Sequence[TrainingReport],
) -> tuple[Sequence[str], list[Sequence[Any]]]:
    """Headings and rows of what trainings of one kind made."""
    # A resumed one may have skipped some.
    stages = max((list(report.seconds) for report in reports), key=len)
    rows: list[Sequence[Any]] = []
    for r in reports:
        seconds = [round(r.seconds.get(stage, 0.0), 1) for stage in stages]
        own = r.made.values()
        rows.append((r.category, r.training_images, r.held_out_images, *own, r.threshold, *seconds))
    made = reports[0].made
    headings = ("category", "images", "held out", *made, "threshold", *(f"{s} s" for s in stages))
    return headings, rows


def _layer_weights(value: str | None) -> dict[str, float] | None:
    if value is None:
        return None
    weights: dict[str, float] = {}
    for part in value.split(",") if value else ():
        layer, equals, weight = (word.strip() for word in part.partition("="))
        try:
            number = float(weight)
        except ValueError:
            number = None
        if number is None or not layer or not equals:
            raise UsageError(
                f"--layer-weights is LAYER=WEIGHT, more of them separated by commas, not {part!r}"
            )
        if layer in weights:
            raise UsageError(f"--layer-weights names {layer} twice")
        weights[layer] = number
    return weights
