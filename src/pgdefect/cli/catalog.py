"""Commands about categories and images: ingest, categories, roots, retire, delete."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgdefect.cli.context import current
from pgdefect.cli.output import (
    Json,
    failures,
    left_out,
    note,
    print_json,
    print_table,
    progress_bars,
)
from pgdefect.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pgdefect.core.types import FolderReading
    from pgdefect.usecases.ingest import IngestReport, OnListed

Yes = Annotated[
    bool, typer.Option("--yes", "-y", help="Do it; without it, only show what would go.")
]


def register(app: typer.Typer) -> None:
    """Add this module's commands to the application."""
    for name, command, example in (
        ("ingest", ingest_command, "pgdefect ingest mvtec/leather --category leather"),
        ("categories", categories_command, "pgdefect categories"),
        ("move-root", move_root_command, "pgdefect move-root /old/mvtec /new/mvtec"),
        ("retire", retire_command, "pgdefect retire --category leather"),
        ("activate", activate_command, "pgdefect activate --detector 3"),
        ("delete", delete_command, "pgdefect delete --detector 2 --yes"),
    ):
        app.command(name, epilog=f"Example:  {example}")(command)


def ingest_command(
    context: typer.Context,
    path: Annotated[
        Path, typer.Argument(help="A folder of images, in any usual layout, or a CSV manifest.")
    ],
    category: Annotated[str | None, typer.Option(help="The product's name.")] = None,
    all_categories: Annotated[
        bool, typer.Option("--all", help="Take every category folder under PATH.")
    ] = False,
    parts: Annotated[
        Path | None, typer.Option(help="CSV with columns path and part (the physical part).")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="For a plain folder: train (the default) or test.")
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="For a plain folder: normal (the default) or anomalous.")
    ] = None,
    folder: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=MEANING",
            help="What a folder is, where its name does not say it: normal, anomalous, masks or "
            "skip. Can be given again.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what each folder is taken as, and stop there.")
    ] = False,
    accept_changes: Annotated[
        bool,
        typer.Option("--accept-changes", help="Update changed files, retire vanished ones."),
    ] = False,
    then_inspect: Annotated[
        bool, typer.Option("--inspect", help="Then inspect the test images.")
    ] = False,
    json: Json = False,
) -> None:
    """Record images: where they are, what they show, which part they are of.

    Running it again changes nothing; changed and vanished files are reported.
    """
    from pgdefect.usecases.ingest import ingest, ingest_all

    if all_categories == (category is not None):
        raise UsageError("name a category with --category, or take all folders with --all")
    said = _said(folder or [])
    database = current(context).database
    show: OnListed = (lambda category, root, folders: None) if json else _show_folders
    with progress_bars() as progress:
        if category is None:
            if parts or split or label:
                raise UsageError("--parts, --split and --label go with --category")
            reports = ingest_all(
                database,
                path,
                said=said,
                accept_changes=accept_changes,
                dry_run=dry_run,
                progress=progress,
                on_listed=show,
            )
        else:
            reports = [
                ingest(
                    database,
                    path,
                    category,
                    parts=parts,
                    split=split,
                    label=label,
                    said=said,
                    accept_changes=accept_changes,
                    dry_run=dry_run,
                    progress=progress,
                    on_listed=show,
                )
            ]
    failed = [item for report in reports for item in report.failed]
    if then_inspect and not dry_run:
        from pgdefect.usecases.inspect.inspect import inspect

        for report in reports:
            with progress_bars() as progress:
                judged = inspect(
                    database,
                    current(context).settings,
                    report.category,
                    split="test",
                    progress=progress,
                )
            note(f"{report.category}: inspected {len(judged.inspections)} test images")
            failed += judged.failed
    if json:
        print_json(reports)
        failures(failed)
        return
    for report in reports:
        if dry_run:
            typer.echo(f"{report.category}: {report.listed} images; nothing was stored")
            _tell(report)
            continue
        typer.echo(
            f"{report.category}: {report.added} added, {report.unchanged} unchanged, "
            f"{len(report.changed)} changed, {len(report.relabeled)} relabeled, "
            f"{len(report.vanished)} vanished, "
            f"{len(report.failed)} unreadable"
        )
        for word, paths in (
            ("changed", report.changed),
            ("relabeled", report.relabeled),
            ("vanished", report.vanished),
        ):
            for name in paths:
                note(f"  {word}: {name}")
        if report.changed or report.relabeled or report.vanished:
            note(
                "  Updated to their current state; missing images were retired, and so was the old "
                "content of changed ones, with what was judged and reviewed of it."
                if report.accepted
                else "  They were left as they are; --accept-changes takes the new state. What was "
                "judged and reviewed of old content is kept with a retired image."
            )
        _tell(report)
    failures(failed)


def _said(given: list[str]) -> dict[str, str]:
    """What --folder says, by folder. Raises UsageError."""
    said = {}
    for text in given:
        name, equals, meaning = text.rpartition("=")
        if not equals or not name:
            raise UsageError(f"--folder is NAME=MEANING, such as negative=normal, not {text!r}")
        said[name] = meaning
    return said


def _show_folders(category: str, root: str, folders: Sequence[FolderReading]) -> None:
    typer.echo(f"{category}: {root}")
    print_table(
        ("folder", "taken as", "count", "why"),
        [(row.folder, row.taken_as, row.count, row.why) for row in folders],
    )
    typer.echo()


def _tell(report: IngestReport) -> None:
    for problem in report.problems:
        note(f"  {problem}")
    left_out(report.skipped)


def categories_command(context: typer.Context, json: Json = False) -> None:
    """List products with their counts and active detector."""
    from pgdefect.db.records.summaries import list_categories

    found = list_categories(current(context).database)
    if json:
        print_json(found)
        return
    if not found:
        note("there is no category yet; add one with: pgdefect ingest PATH --category NAME")
    print_table(
        (
            "category",
            "images",
            "train",
            "normal",
            "anomalous",
            "inspected",
            "rejected",
            "detector",
            "threshold",
        ),
        [
            (
                c.name + (" (retired)" if c.retired_at else ""),
                c.images,
                c.train_images,
                c.normal_images,
                c.anomalous_images,
                c.inspected_images,
                c.rejected_images,
                f"{c.detector_id} (v{c.detector_version})" if c.detector_id else "-",
                c.threshold,
            )
            for c in found
        ],
    )


def move_root_command(
    context: typer.Context,
    old: Annotated[Path, typer.Argument(help="The folder the images were ingested from.")],
    new: Annotated[Path, typer.Argument(help="Where it is now.")],
) -> None:
    """Re-point images whose folder has moved."""
    from pgdefect.db.records.catalog import move_root

    target = new.absolute()
    if not target.is_dir():
        raise UsageError(f"{str(target)!r} is no folder")
    count = move_root(current(context).database, str(old.absolute()), str(target))
    typer.echo(f"{count} images now lie under {target}")


Category = Annotated[str | None, typer.Option(help="A category by name.")]
Detector = Annotated[
    int | None,
    typer.Option(min=1, max=2**63 - 1, help="A detector by number (pgdefect detectors)."),
]
Image = Annotated[str | None, typer.Option(help="An image by id, end of path, or start of sha256.")]


def _one(category: str | None, detector: int | None, image: str | None) -> None:
    if sum(value is not None for value in (category, detector, image)) != 1:
        raise UsageError("name one of --category, --detector and --image")


def retire_command(
    context: typer.Context,
    category: Category = None,
    detector: Detector = None,
    image: Image = None,
) -> None:
    """Take a category, detector or image out of use; nothing is deleted."""
    _set_retired(context, category, detector, image, retired=True)


def activate_command(
    context: typer.Context,
    category: Category = None,
    detector: Detector = None,
    image: Image = None,
) -> None:
    """Take a category, detector or image into use again."""
    _set_retired(context, category, detector, image, retired=False)


def _set_retired(
    context: typer.Context,
    category: str | None,
    detector: int | None,
    image: str | None,
    *,
    retired: bool,
) -> None:
    from pgdefect.db.records import lifecycle
    from pgdefect.db.search.queries import find_image

    _one(category, detector, image)
    database = current(context).database
    if category is not None:
        lifecycle.set_category_retired(database, category, retired)
        subject = f"category {category}"
    elif detector is not None:
        change = lifecycle.retire_detector if retired else lifecycle.activate_detector
        subject = f"detector {detector} of {change(database, detector)}"
    else:
        assert image is not None
        found = find_image(database, image)
        with database.begin() as connection:
            lifecycle.set_images_retired(connection, [found.id], retired)
        subject = f"image {found.id} ({found.relative_path})"
    typer.echo(f"{subject} is {'retired' if retired else 'active'}")


def delete_command(
    context: typer.Context,
    category: Category = None,
    detector: Detector = None,
    image: Image = None,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Delete a category, detector or image and everything that depends on it.

    Without --yes it only shows what would be deleted. Image files are never touched.
    """
    from pgdefect.db.records import lifecycle
    from pgdefect.db.records.delete_preview import dependents
    from pgdefect.db.search.queries import find_image

    _one(category, detector, image)
    database = current(context).database
    image_id = find_image(database, image).id if image is not None else None
    preview = dependents(database, category=category, detector_id=detector, image_id=image_id)
    if yes and category is not None:
        lifecycle.delete_category(database, category)
    elif yes and detector is not None:
        lifecycle.delete_detector(database, detector)
    elif yes and image_id is not None:
        lifecycle.delete_image(database, image_id)
    if json:
        print_json({"deleted": yes, "preview": preview})
        return
    typer.echo(f"{'deleted' if yes else 'would delete'} {preview}")
    if not yes:
        note("Nothing was deleted; add --yes to do it.")
