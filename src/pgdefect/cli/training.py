"""The command train."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgdefect.cli.context import current
from pgdefect.cli.output import Json, failures, note, print_json, print_table, progress_bars
from pgdefect.core.errors import TrainingError, UsageError

if TYPE_CHECKING:
    from pgdefect.usecases.train.train import TrainReport
    from pgdefect.usecases.train.train_network import NetworkReport

OPTIONS_OF = {
    "patchcore": (
        "backbone",
        "layers",
        "layer_weights",
        "weights",
        "resize",
        "local_contrast",
        "coreset_ratio",
        "max_vectors",
        "num_neighbors",
        "worst_share",
        "transform",
        "pca_dim",
        "whiten",
        "metric",
        "precision",
        "max_patches",
        "batch_size",
        "leave_out_outliers",
    ),
    "efficient_ad": (
        "model_size",
        "max_steps",
        "learning_rate",
        "teacher_weights",
        "imagenette_dir",
    ),
}
"""Options of `train` that one kind of detector alone has."""
MAX_NAMED = 10
"""Outliers of one training that are named."""


def register(app: typer.Typer) -> None:
    """Add this module's command to the application."""
    app.command("train", epilog="Example:  pgdefect train leather --coreset-ratio 0.1")(
        train_command
    )


def train_command(
    context: typer.Context,
    categories: Annotated[
        list[str] | None, typer.Argument(metavar="CATEGORY...", help="Categories to train.")
    ] = None,
    all_categories: Annotated[bool, typer.Option("--all", help="Train every category.")] = False,
    kind: Annotated[str, typer.Option(help="patchcore or efficient_ad.")] = "patchcore",
    backbone: Annotated[
        str,
        typer.Option(
            help="A name of `pgdefect backbones`, or any timm network; several joined by + are an "
            "ensemble."
        ),
    ] = "efficientnet_lite0",
    layers: Annotated[
        str | None, typer.Option(help="Layers to tap, separated by commas; default by backbone.")
    ] = None,
    layer_weights: Annotated[
        str | None,
        typer.Option(
            metavar="LAYER=WEIGHT,...",
            help="How much layers count in a distance, beside 1: their features are multiplied by "
            "this. `pgdefect backbones` lists the defaults, for its own layers and local contrast.",
        ),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="A state dict to use instead of the backbone's own.")
    ] = None,
    image_size: Annotated[
        str,
        typer.Option(
            metavar="SIZE|HEIGHTxWIDTH",
            help="Images are resized to this: SIZE to the area of a square, HEIGHTxWIDTH exactly.",
        ),
    ] = "256",
    resize: Annotated[
        str | None,
        typer.Option(
            help="keep (the aspect ratio) or stretch; stretch with HEIGHTxWIDTH or a crop."
        ),
    ] = None,
    local_contrast: Annotated[
        float,
        typer.Option(
            help="Even out light and exposure: reach as a share of the image's side; 0 for none."
        ),
    ] = 0.1,
    center_crop: Annotated[
        str | None,
        typer.Option(metavar="SIZE|HEIGHTxWIDTH", help="Then this is cut out of the middle."),
    ] = None,
    coreset_ratio: Annotated[
        float, typer.Option(help="Share of the patches that becomes the memory bank.")
    ] = 0.1,
    max_vectors: Annotated[
        int, typer.Option(help="The memory bank's, at most; 0 for no limit.")
    ] = 20_000,
    num_neighbors: Annotated[
        int, typer.Option(help="PatchCore's score re-weighting; 1 leaves it out.")
    ] = 1,
    worst_share: Annotated[
        float | None,
        typer.Option(
            help="The image score is the mean over this share of the patches, the worst ones; 0 "
            "takes the worst alone. 0.005, or 0 with --num-neighbors or --transform none."
        ),
    ] = None,
    holdout: Annotated[
        float | None,
        typer.Option(
            help="Share of the normal images that sets the threshold. PatchCore learns from them "
            "too and compares each with other parts alone: all, up to 200 images. "
            "EfficientAD does not learn from them: 0.2."
        ),
    ] = None,
    false_reject_rate: Annotated[
        float, typer.Option(help="Share of normal images the threshold may reject.")
    ] = 0.05,
    leave_out_outliers: Annotated[
        bool,
        typer.Option(
            "--leave-out-outliers",
            help="Learn nothing from normal images that score far outside the rest, as the "
            "training before this one named them, or this one does; not from those reviewed "
            "as normal, which stay.",
        ),
    ] = False,
    transform: Annotated[str, typer.Option(help="centered, unit or none.")] = "centered",
    pca_dim: Annotated[
        int, typer.Option(help="Dimensions kept by the centered transform; 0 keeps all.")
    ] = 192,
    whiten: Annotated[
        float | None,
        typer.Option(
            help="How far the centered transform evens out its axes: 0 not at all, 1 to the same "
            "variance. 0.25, or 0 with --local-contrast 0."
        ),
    ] = None,
    metric: Annotated[str, typer.Option(help="cosine or l2.")] = "cosine",
    precision: Annotated[str, typer.Option(help="half or single: what is stored.")] = "half",
    max_patches: Annotated[
        int | None,
        typer.Option(help="Pick the coreset from this many patches at most, drawn at random."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides hold-out, coreset, first weights.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Images per extraction step.")] = 8,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    model_size: Annotated[
        str, typer.Option(help="EfficientAD: small or medium networks.")
    ] = "small",
    max_steps: Annotated[
        int,
        typer.Option(
            help="EfficientAD: training steps. The published 70,000 are for a GPU; two CPU cores "
            "take 1.8 s for each, a day and a half in all."
        ),
    ] = 70_000,
    learning_rate: Annotated[float, typer.Option(help="EfficientAD: Adam's.")] = 1e-4,
    teacher_weights: Annotated[
        Path | None,
        typer.Option(help="EfficientAD: pretrained_teacher_SIZE.pth; default: its download."),
    ] = None,
    imagenette_dir: Annotated[
        Path | None,
        typer.Option(help="EfficientAD: photographs of all kinds, in folders; default: download."),
    ] = None,
    json: Json = False,
) -> None:
    """Learn what is normal from a category's normal training images.

    The new detector becomes the category's active one of its kind; older ones are kept.
    """
    from pgdefect.db.records.catalog import category_id
    from pgdefect.db.records.summaries import list_categories
    from pgdefect.usecases.train.options import EfficientAdOptions, TrainOptions
    from pgdefect.usecases.train.train import train
    from pgdefect.usecases.train.train_network import train_network
    from pgdefect.usecases.train.training_run import TrainingRun

    _check_kind(context, kind)
    resized = size_of("--image-size", image_size)
    cropped = size_of("--center-crop", center_crop) if center_crop else None
    options: TrainOptions | EfficientAdOptions
    if kind == "efficient_ad":
        options = EfficientAdOptions(
            model_size=model_size,  # type: ignore[arg-type]
            max_steps=max_steps,
            learning_rate=learning_rate,
            teacher_weights=teacher_weights,
            imagenette_dir=imagenette_dir,
            image_size=resized,
            center_crop=cropped,
            holdout=EfficientAdOptions.holdout if holdout is None else holdout,
            false_reject_rate=false_reject_rate,
            seed=seed,
            device=device,
        )
    else:
        options = TrainOptions(
            backbone=backbone,
            layers=tuple(part.strip() for part in layers.split(",")) if layers else (),
            layer_weights=_layer_weights(layer_weights),
            weights=weights,
            image_size=resized,
            center_crop=cropped,
            resize=resize or ("stretch" if cropped or "x" in image_size.lower() else "keep"),  # type: ignore[arg-type]
            local_contrast=local_contrast or None,
            coreset_ratio=coreset_ratio,
            max_vectors=max_vectors or None,
            num_neighbors=num_neighbors,
            worst_share=worst_share,
            holdout=TrainOptions.holdout if holdout is None else holdout,
            false_reject_rate=false_reject_rate,
            leave_out_outliers=leave_out_outliers,
            transform=transform,  # type: ignore[arg-type]
            pca_dim=pca_dim or None,
            whiten=whiten,
            metric=metric,
            precision=precision,  # type: ignore[arg-type]
            max_patches=max_patches,
            seed=seed,
            batch_size=batch_size,
            device=device,
        )
    settings = current(context).settings
    database = current(context).database
    if all_categories == bool(categories):
        raise UsageError("name the categories to train, or take all with --all")
    names = categories or [c.name for c in list_categories(database) if c.retired_at is None]
    if not names:
        raise UsageError(
            "there is no category yet; add one with: pgdefect ingest PATH --category NAME"
        )
    with database.connect() as connection:
        for name in names:  # a slip in the last name shows before the first is trained
            category_id(connection, name)

    reports: list[TrainReport | NetworkReport] = []
    untrained = 0
    with ExitStack() as stack:
        if isinstance(options, TrainOptions):
            run = stack.enter_context(TrainingRun(settings, database, names, options))
            learn: Callable[..., TrainReport | NetworkReport] = partial(
                train, database, settings, options=options, run=run
            )
        else:
            learn = partial(train_network, database, settings, options=options)
        for name in names:
            try:
                with progress_bars() as progress:
                    reports.append(learn(name, progress=progress))
            except TrainingError as error:
                if len(names) == 1:
                    raise
                note(f"pgdefect: {error}")
                untrained += 1
                continue
            _say_resumed(reports[-1])
            note(f"{name}: detector {reports[-1].detector_id} is active")
            _say_outliers(reports[-1])
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
    if untrained:
        raise typer.Exit(1)


def _say_resumed(report: TrainReport | NetworkReport) -> None:
    """What an interrupted training had done."""
    from pgdefect.usecases.train.train import TrainReport

    if not isinstance(report, TrainReport):
        return  # EfficientAD starts over
    if report.already_stored:
        note(
            f"{report.category}: the interrupted training had already stored detector "
            f"{report.detector_id}; what was left to do is done"
        )
    elif report.resumed_images:
        note(
            f"{report.category}: reused {report.resumed_images:,} of "
            f"{report.extracted_images:,} images extracted before"
        )


def _say_outliers(report: TrainReport | NetworkReport) -> None:
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


def _check_kind(context: typer.Context, kind: str) -> None:
    """Raises UsageError for an unknown kind, and for options that belong to the other one."""
    if kind not in OPTIONS_OF:
        raise UsageError(f"--kind is {' or '.join(OPTIONS_OF)}, not {kind!r}")
    for other, options in OPTIONS_OF.items():
        given = [
            f"--{name.replace('_', '-')}"
            for name in options
            if (source := context.get_parameter_source(name)) and source.name == "COMMANDLINE"
        ]
        if other != kind and given:
            raise UsageError(f"{', '.join(given)} goes with --kind {other}, not with {kind}")


def _trained(
    reports: Sequence[TrainReport | NetworkReport],
) -> tuple[Sequence[str], list[Sequence[Any]]]:
    """Headings and rows of what trainings of one kind made."""
    from pgdefect.usecases.train.train_network import NetworkReport

    # A resumed one may have skipped some.
    stages = max((list(report.seconds) for report in reports), key=len)
    rows: list[Sequence[Any]] = []
    for r in reports:
        own: tuple[float, ...]
        if isinstance(r, NetworkReport):
            made, own = ("steps", "loss"), (r.steps, r.losses["train_loss"])
        else:
            made, own = ("bank vectors", "dim"), (r.bank_vectors, r.embedding_dim)
        seconds = [round(r.seconds.get(stage, 0.0), 1) for stage in stages]
        rows.append((r.category, r.training_images, r.held_out_images, *own, r.threshold, *seconds))
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


def size_of(option: str, text: str) -> tuple[int, int]:
    """Height and width from an option's text. Raises UsageError."""
    parts = text.lower().split("x")
    if not all(re.fullmatch("[0-9]{1,9}", part) for part in parts) or len(parts) > 2:
        raise UsageError(f"{option} is a number or HEIGHTxWIDTH, not {text!r}")
    return int(parts[0]), int(parts[-1])
