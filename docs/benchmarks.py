"""The page of measured ratios, from what `benchmarks/` keeps: benchmarks.md."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, ROOT, spelled_seconds
from docs.reference import GENERATED

TOLD_ELSEWHERE = {"accuracy": "accuracy.md", "defects": "retrieval.md"}
"""Benchmarks whose figures are no ratios, with the page that explains them."""

INTRODUCTION = """
# How fast, and beside whom

The figures in `benchmarks/results/`, as `python -m benchmarks NAME` measured them last; without a
name it measures all of them anew. A ratio is the peer's time over ours, both taken in the same run
on the same machine: above 1 we are faster. *Asked* is what we ask of ourselves. *Floor* is how
many times longer we took than the bytes moved or the operations done take at the rates that this
machine reached in that run; below 1, work that the floor counts could be left out.
""".strip()


def benchmarks_page(results: Path = RESULTS) -> str:
    """Every kept benchmark; before them, whatever is behind a peer or less than was asked for."""
    kept = {path.stem: json.loads(path.read_text()) for path in sorted(results.glob("*.json"))}
    kept = {name: content for name, content in kept.items() if not content["quick"]}
    lines = [
        GENERATED.format("`benchmarks/results/`"),
        "",
        INTRODUCTION,
        "",
        "## Where we are not ahead",
    ]
    lines += ["", *(_behind(kept) or ["Nowhere."])]
    for name, content in kept.items():
        lines += ["", f"## {name}", "", _what(name), "", _machine(content["machine"])]
        if name in TOLD_ELSEWHERE:
            lines += ["", f"The figures: [{TOLD_ELSEWHERE[name]}]({TOLD_ELSEWHERE[name]})."]
        for report in content["reports"]:
            lines += _report(report)
    return "\n".join(lines) + "\n"


def _behind(kept: dict[str, Any]) -> list[str]:
    found = []
    for name, content in kept.items():
        for report in content["reports"]:
            found += [
                f"- **{name}**, {report['images']}: {row['what']}, {_ratio(row)} times as fast as "
                f"{row['against']}"
                for row in report["rows"]
                if row["ratio"] < 1 or row["met"] is False
            ]
            found += [
                f"- **{name}**, {report['images']}: missed: {check['requirement']}"
                for check in report["checks"]
                if not check["holds"]
            ]
    return found


def _report(report: dict[str, Any]) -> Iterator[str]:
    if not report["rows"] and not report["checks"]:
        return
    yield from ("", f"**{report['images']}**")
    for against, rows in groupby(report["rows"], key=lambda row: str(row["against"])):
        yield from ("", f"Against {against}:", "")
        yield from ("| | ours | the peer's | ratio | asked | floor |", "|---|---|---|---|---|---|")
        for row in rows:
            asked = "" if row["target"] is None else f"{row['target']:g}"
            floor = row["floor_seconds"] and f"{row['seconds'] / row['floor_seconds']:.3g}"
            times = (spelled_seconds(row["seconds"]), spelled_seconds(row["peer_seconds"]))
            yield _line(row["what"], *times, _ratio(row), asked, floor or "")
    if notes := report.get("notes"):
        yield from ("", *(f"- {note}" for note in notes))
    if report["checks"]:
        yield from ("", "| asked | |", "|---|---|")
    for check in report["checks"]:
        yield _line(check["requirement"], "holds" if check["holds"] else "**missed**")


def _line(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _what(name: str) -> str:
    """What the benchmark's module says of itself, first paragraph."""
    text = (
        ast.get_docstring(ast.parse((ROOT / "benchmarks" / f"bench_{name}.py").read_text())) or ""
    )
    return " ".join(text.partition("\n\n")[0].split())


def _machine(facts: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return f"{facts['cpus']} CPUs ({facts['processor']}), Python {facts['python']}, {versions}."


def _ratio(row: dict[str, Any]) -> str:
    ratio: float = row["ratio"]
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"
