"""What commands print: results to stdout, progress and warnings to stderr."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgdefect.cli import logs
from pgdefect.core.progress import Progress, silent

if TYPE_CHECKING:
    from pgdefect.core.types import Skipped

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
"""The option of every command that reports."""

STAGES = {
    "ingest": "Reading images",
    "extractor": "Loading the backbone",
    "extract": "Extracting patch embeddings",
    "coreset": "Selecting the coreset",
    "threshold": "Scoring held-out images",
    "prepare": "Reading training images",
    "teacher": "Measuring the teacher's features",
    "steps": "Training steps",
    "scale": "Normalizing anomaly maps",
    "export": "Exporting the network",
    "load": "Copying the memory bank",
    "index": "Building the HNSW index",
    "embed": "Embedding images",
    "simulate": "Drawing defects",
    "inspect": "Inspecting",
    "maps": "Drawing anomaly maps",
    "pixels": "Comparing maps with masks",
    "write": "Writing rows",
    "recall": "Comparing indexes with exact searches",
    "backup": "Dumping tables",
    "restore": "Loading tables",
    "indexes": "Building indexes",
}


def print_json(value: Any) -> None:
    """One JSON document on stdout; dataclasses become objects, arrays lists."""
    typer.echo(json.dumps(value, default=_plain, ensure_ascii=False, indent=2))


def print_table(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Aligned columns; numbers to the right. Plain text, so that it can be piped."""
    cells = [[_cell(value) for value in row] for row in rows]
    kinds = [
        all(_is_number(row[column]) for row in cells) if cells else False
        for column in range(len(headings))
    ]
    widths = [
        max([len(heading), *(len(row[column]) for row in cells)])
        for column, heading in enumerate(headings)
    ]
    for row in [list(headings), ["-" * width for width in widths], *cells]:
        line = "  ".join(
            cell.rjust(width) if numeric else cell.ljust(width)
            for cell, width, numeric in zip(row, widths, kinds, strict=True)
        )
        typer.echo(line.rstrip())


def visible(text: str, keep: str = "") -> str:
    """Text with its control characters written out, but those of `keep`.

    Names come from files and manifests, and a terminal obeys what it is sent.
    """
    return _CONTROL.sub(
        lambda found: found[0] if found[0] in keep else found[0].encode("unicode_escape").decode(),
        text,
    )


_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""C0 and C1, and what separates lines or turns the direction of writing."""


def note(message: str) -> None:
    """A line for the person at the terminal, on stderr."""
    if not logs.said("note", message):
        typer.echo(visible(message, keep="\n\t"), err=True)


def left_out(skipped: Sequence[Skipped]) -> None:
    """Say how many files were left out, by suffix and reason."""
    for one in skipped:
        files = "file" if one.count == 1 else "files"
        note(f"  left out: {one.count} {one.suffix or 'other'} {files}: {one.reason}")


def failures(failed: Sequence[tuple[str, str]]) -> None:
    """List files that could not be used, and end with exit code 1 if there are any."""
    if failed:
        note(f"{len(failed)} file{'s' if len(failed) > 1 else ''} could not be read:")
        for _, reason in failed:
            note(f"  {reason}")
        raise typer.Exit(1)


@contextmanager
def progress_bars(quiet: bool = False) -> Iterator[Progress]:
    """Bars on stderr, one per stage, with rate and time left; only on a terminal."""
    if quiet or logs.active() or not sys.stderr.isatty():
        yield silent
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        SpinnerColumn,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import (
        Progress as Bars,
    )

    bars = Bars(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    tasks: dict[str, TaskID] = {}

    def report(stage: str, done: int, total: int) -> None:
        if stage not in tasks:
            tasks[stage] = bars.add_task(STAGES.get(stage, stage), total=total or None, rate="")
        task = tasks[stage]
        speed = bars.tasks[bars.task_ids.index(task)].speed
        rate = f"{speed:,.0f}/s" if speed and speed >= 10 else f"{speed:.1f}/s" if speed else ""
        bars.update(task, completed=done, total=total or None, rate=rate)

    with bars:
        yield report


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1 else f"{value:,.3f}".rstrip("0").rstrip(".")
    if isinstance(value, int):
        return f"{value:,}"
    return visible(str(value))


def _is_number(cell: str) -> bool:
    return cell == "-" or cell.replace(",", "").replace(".", "").replace("-", "").isdigit()


def _plain(value: Any) -> Any:
    if hasattr(value, "to_json"):
        return value.to_json()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"cannot write {type(value).__name__} as JSON")
