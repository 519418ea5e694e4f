"""What comes from and goes to other programs: import, export."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgdefect.cli.context import current
from pgdefect.cli.output import Json, failures, note, print_json, print_table, progress_bars
from pgdefect.core.errors import UsageError

if TYPE_CHECKING:
    from pgdefect.usecases.exchange.export import ExportReport
    from pgdefect.usecases.exchange.export_anomalib import CheckpointReport


class Format(Enum):
    """What `export` writes."""

    parquet = "parquet"
    numpy = "numpy"
    anomalib = "anomalib"
    fiftyone = "fiftyone"


def register(app: typer.Typer) -> None:
    """Add this module's commands to the application."""
    for name, command, example in (
        (
            "import",
            import_command,
            "pgdefect import leather.ckpt --category leather --threshold 2",
        ),
        ("export", export_command, "pgdefect export leather leather-tables"),
    ):
        app.command(name, epilog=f"Example:  {example}")(command)


def import_command(
    context: typer.Context,
    path: Annotated[
        Path, typer.Argument(help="A .ckpt of anomalib, a torch file, or a model's folder.")
    ],
    category: Annotated[str, typer.Option(help="The product it was trained on.")],
    threshold: Annotated[
        float | None,
        typer.Option(help="Euclidean distance above which an image is anomalous; by held-out."),
    ] = None,
    false_reject_rate: Annotated[
        float, typer.Option(help="Without --threshold: share of normal images it may reject.")
    ] = 0.05,
    image_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE|HEIGHTxWIDTH", help="What images were resized to, if the file is silent."
        ),
    ] = None,
    center_crop: Annotated[
        str | None,
        typer.Option(metavar="SIZE|HEIGHTxWIDTH", help="With --image-size: cut out the middle."),
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="The network that made the vectors, by timm's name.")
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="Layers it was tapped at, separated by commas.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="A state dict to use instead of the backbone's own.")
    ] = None,
    num_neighbors: Annotated[
        int | None, typer.Option(help="Of a tensor: PatchCore's score re-weighting; 1 is none.")
    ] = None,
    tensor: Annotated[
        str | None, typer.Option(help="The bank's name in a file of several tensors.")
    ] = None,
    json: Json = False,
) -> None:
    """Make a memory bank of another program's the category's active detector.

    PATH is a checkpoint of anomalib's Patchcore; a tensor (num_vectors, embedding_dim), alone or
    in a dict, that torch.save wrote; or a folder that patchcore-inspection saved
    (nnscorer_search_index.faiss, patchcore_params.pkl). Nothing in a file is executed, and one
    that would run code is refused. What a file does not say of the network has to be given.

    The threshold comes from the category's normal training images that the bank was not made
    from, unless --threshold gives it. Distances of patchcore-inspection are squared: give
    the root.
    """
    from pgdefect.usecases.exchange.bank_files import BankOptions
    from pgdefect.usecases.exchange.import_bank import import_bank
    from pgdefect.usecases.train.choose import size_from

    options = BankOptions(
        image_size=size_from("image_size", image_size) if image_size else None,
        center_crop=size_from("center_crop", center_crop) if center_crop else None,
        backbone=backbone,
        layers=tuple(part.strip() for part in layers.split(",")) if layers else (),
        weights=weights,
        num_neighbors=num_neighbors,
        tensor=tensor,
    )
    with progress_bars() as progress:
        report = import_bank(
            current(context).database,
            current(context).settings,
            path,
            category,
            options,
            threshold=threshold,
            false_reject_rate=false_reject_rate,
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
    if not report.learned_images:
        note(
            f"{report.category}: no image that was looked at has a patch that is in the bank. It "
            "was made from other images, or by another network, weights or preparation than given"
        )
    failures(report.failed)


def export_command(
    context: typer.Context,
    category: Annotated[str, typer.Argument(help="The product whose data is written.")],
    path: Annotated[Path, typer.Argument(help="A new folder; for anomalib a file, .ckpt.")],
    to: Annotated[
        Format | None,
        typer.Option(help="What to write; by default anomalib for a .ckpt, else parquet."),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(help="For anomalib: the weights it was trained with, if from a file."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
    json: Json = False,
) -> None:
    """Write a category's data for other programs.

    parquet: images with their newest inspection, all inspections, the active memory bank with
    the image and cell of each vector, the same before the transform, image and defect
    embeddings, regions; a file each, its metadata saying by which extractor, metric and
    transform. numpy: the same vectors and the numbers beside them as .npy, rows as CSV.
    fiftyone: samples, labels, masks, heatmaps and embeddings as a FiftyOneDataset.

    anomalib: the memory bank as a checkpoint that its Patchcore loads. anomalib compares raw
    vectors by Euclidean distance: unless the bank is stored so, its vectors are read again
    from the images they came from, and the threshold is left out. It cannot prepare images as
    training does by default: train with --resize stretch --local-contrast 0.
    """
    if to is None:
        to = Format.anomalib if path.suffix == ".ckpt" else Format.parquet
    if weights is not None and to is not Format.anomalib:
        raise UsageError("--weights is for --to anomalib only")
    database, settings = current(context).database, current(context).settings
    with progress_bars() as progress:
        if to is Format.anomalib:
            from pgdefect.usecases.exchange.export_anomalib import export_anomalib

            checkpoint = export_anomalib(
                database, settings, category, path, weights=weights, force=force, progress=progress
            )
        elif to is Format.fiftyone:
            from pgdefect.usecases.exchange.export_fiftyone import export_fiftyone

            report = export_fiftyone(database, category, path, force=force, progress=progress)
        else:
            from pgdefect.usecases.exchange.export import export_numpy, export_parquet

            write = export_numpy if to is Format.numpy else export_parquet
            report = write(database, category, path, force=force, progress=progress)
    if to is Format.anomalib:
        _print_checkpoint(checkpoint, json)
    else:
        _print_tables(report, json)


def _print_checkpoint(report: CheckpointReport, json: bool) -> None:
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


def _print_tables(report: ExportReport, json: bool) -> None:
    if json:
        print_json(report)
    else:
        print_table(
            ("table", "rows", "dim", "files"),
            [
                (t.table, t.rows, t.dim, t.files[0] if len(t.files) == 1 else f"{t.table}/*.npy")
                for t in report.tables
            ],
        )
        if report.resumed:
            note(
                f"{report.category}: reused {', '.join(report.resumed)} from an interrupted export"
            )
        note(f"{report.category}: written to {report.path} ({report.format})")
    failures(report.failed)
