"""Commands about other programs' memory banks: import-bank, export-bank."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pgdefect.cli.context import current
from pgdefect.cli.output import failures, note, print_json, print_table, progress_bars
from pgdefect.cli.training import size_of

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def register(app: typer.Typer) -> None:
    """Add this module's commands to the application."""
    for name, command, example in (
        (
            "import-bank",
            import_bank,
            "pgdefect import-bank leather.ckpt --category leather --threshold 2",
        ),
        ("export-bank", export_bank, "pgdefect export-bank leather leather.ckpt"),
    ):
        app.command(name, epilog=f"Example:  {example}")(command)


def import_bank(
    context: typer.Context,
    checkpoint: Annotated[Path, typer.Argument(help="A .ckpt of anomalib's Patchcore.")],
    category: Annotated[str, typer.Option(help="The product it was trained on.")],
    threshold: Annotated[
        float | None,
        typer.Option(help="Raw score above which an image is anomalous; default by held-out."),
    ] = None,
    false_reject_rate: Annotated[
        float, typer.Option(help="Without --threshold: share of normal images it may reject.")
    ] = 0.05,
    image_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE|HEIGHTxWIDTH", help="Where the checkpoint does not say; then its own."
        ),
    ] = None,
    center_crop: Annotated[
        str | None,
        typer.Option(metavar="SIZE|HEIGHTxWIDTH", help="With --image-size: cut out the middle."),
    ] = None,
    json: Json = False,
) -> None:
    """Make a bank that anomalib trained the category's active detector.

    Nothing in the checkpoint is executed. The threshold comes from the category's normal
    training images that the bank was not made from, unless --threshold gives it.
    """
    from pgdefect.pipeline.exchange import import_anomalib

    with progress_bars() as progress:
        report = import_anomalib(
            current(context).database,
            current(context).settings,
            checkpoint,
            category,
            threshold=threshold,
            false_reject_rate=false_reject_rate,
            image_size=size_of("--image-size", image_size) if image_size else None,
            center_crop=size_of("--center-crop", center_crop) if center_crop else None,
            progress=progress,
        )
    if json:
        print_json(report)
    else:
        print_table(
            ("category", "detector", "bank vectors", "dim", "neighbors", "held out", "threshold"),
            [
                (
                    report.category,
                    report.detector_id,
                    report.bank_vectors,
                    report.embedding_dim,
                    report.num_neighbors,
                    report.held_out_images,
                    report.threshold,
                )
            ],
        )
        note(f"{report.category}: detector {report.detector_id} is active")
    failures(report.failed)


def export_bank(
    context: typer.Context,
    category: Annotated[str, typer.Argument(help="Its active detector's bank is written.")],
    file: Annotated[Path, typer.Argument(metavar="FILE.ckpt", help="Where to write it.")],
    weights: Annotated[
        Path | None, typer.Option(help="The weights it was trained with, if from a file.")
    ] = None,
    json: Json = False,
) -> None:
    """Write a category's memory bank as a checkpoint that anomalib's Patchcore loads.

    anomalib compares raw vectors by Euclidean distance: unless the bank is stored so, its
    vectors are read again from the images they came from, and the threshold is left out. It
    cannot prepare images as training does by default: train with --resize stretch
    --local-contrast 0.
    """
    from pgdefect.pipeline.exchange import export_anomalib
    from pgdefect.pipeline.pictures import writable_folder

    writable_folder(file.parent)
    with progress_bars() as progress:
        report = export_anomalib(
            current(context).database,
            current(context).settings,
            category,
            file,
            weights=weights,
            progress=progress,
        )
    if json:
        print_json(report)
        return
    print_table(
        ("category", "detector", "bank vectors", "dim", "vectors", "threshold", "file"),
        [
            (
                report.category,
                report.detector_id,
                report.bank_vectors,
                report.embedding_dim,
                report.vectors,
                report.threshold,
                str(report.path),
            )
        ],
    )
