"""Commands that list what there is to inspect with: detectors, backbones."""

from __future__ import annotations

from typing import Annotated

import typer

from pgdefect.cli.context import current
from pgdefect.cli.output import Json, note, print_json, print_table


def register(app: typer.Typer) -> None:
    """Add this module's commands to the application."""
    for name, command, example in (
        ("detectors", detectors_command, "pgdefect detectors --category leather"),
        ("backbones", backbones_command, "pgdefect backbones"),
    ):
        app.command(name, epilog=f"Example:  {example}")(command)


def detectors_command(
    context: typer.Context,
    category: Annotated[str | None, typer.Option(help="Only this category's.")] = None,
    json: Json = False,
) -> None:
    """List trained detectors, active and not."""
    from pgdefect.db.records.summaries import list_detectors

    found = list_detectors(current(context).database, category)
    if json:
        print_json(found)
        return
    print_table(
        (
            "detector",
            "category",
            "kind",
            "version",
            "state",
            "backbone",
            "images",
            "bank vectors",
            "threshold",
            "size",
        ),
        [
            (
                d.id,
                d.category,
                d.kind,
                d.version,
                "active" if d.active else d.state,
                d.backbone,
                d.num_images,
                d.num_vectors,
                d.threshold,
                d.size,
            )
            for d in found
        ],
    )


def backbones_command(json: Json = False) -> None:
    """List pretrained backbones: which work offline, which download their weights."""
    from pgdefect.vision.networks.backbone import BACKBONES, DEFAULT_BACKBONE

    rows = [
        {
            "backbone": b.name + (" (default)" if b.name == DEFAULT_BACKBONE and not json else ""),
            "layers": ",".join(b.layers),
            "layer_weights": ",".join(f"{layer}={weight:g}" for layer, weight in b.layer_weights)
            or None,
            "embedding_dim": b.embedding_dim,
            "weights": b.source,
            "offline": b.available_offline,
        }
        for b in BACKBONES.values()
    ]
    if json:
        print_json(rows)
        return
    print_table(
        ("backbone", "layers", "layer weights", "dim", "weights from", "works offline"),
        [tuple(row.values()) for row in rows],
    )
    note("Any other timm network works by its name, with --layers; --weights FILE loads a file.")
    note("An ensemble joins names: --backbone efficientnet_lite0+efficientnet_lite2.")
