"""Runs the code of pages and notebooks, and keeps what a notebook would show of it.

No kernel is needed: a cell is compiled and run, and what its last expression is worth is shown by
the same methods (`_repr_png_`, `_repr_html_`, `repr`) that a notebook asks.
"""

from __future__ import annotations

import ast
import base64
import json
import re
from collections.abc import Iterable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks_of(page: Path) -> list[str]:
    """The Python blocks of a Markdown page, in order."""
    return _BLOCK.findall(page.read_text(encoding="utf-8"))


def run_cell(source: str, namespace: dict[str, Any], name: str = "cell") -> tuple[str, Any]:
    """What a cell prints, and the value of its last expression (None where it has none)."""
    tree = ast.parse(source, name)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed = StringIO()
    value = None
    with redirect_stdout(printed):
        exec(compile(tree, name, "exec"), namespace)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), name, "eval"), namespace)
    return printed.getvalue(), value


def shown(value: Any) -> dict[str, Any]:
    """What a notebook shows of a value, by MIME type; empty for None."""
    if value is None:
        return {}
    data: dict[str, Any] = {"text/plain": repr(value).splitlines(keepends=True)}
    if (png := getattr(value, "_repr_png_", lambda: None)()) is not None:
        data["image/png"] = base64.b64encode(png).decode()
    if (html := getattr(value, "_repr_html_", lambda: None)()) is not None:
        data["text/html"] = html.splitlines(keepends=True)
    return data


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    """The cells that are code."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def run_notebook(notebook: dict[str, Any], namespace: dict[str, Any]) -> None:
    """Run every code cell in order and put its outputs into it."""
    for number, cell in enumerate(code_cells(notebook), start=1):
        printed, value = run_cell("".join(cell["source"]), namespace, f"cell {number}")
        outputs: list[dict[str, Any]] = []
        if printed:
            text = printed.splitlines(keepends=True)
            outputs.append({"output_type": "stream", "name": "stdout", "text": text})
        if data := shown(value):
            outputs.append(
                {
                    "output_type": "execute_result",
                    "execution_count": number,
                    "metadata": {},
                    "data": data,
                }
            )
        cell["outputs"], cell["execution_count"] = outputs, number


def notebook_of(cells: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """A notebook without outputs, of `(markdown or code, text)`."""
    made: list[dict[str, Any]] = []
    for number, (kind, text) in enumerate(cells):
        cell: dict[str, Any] = {
            "cell_type": kind,
            "id": f"cell-{number}",
            "metadata": {},
            "source": text.strip().splitlines(keepends=True),
        }
        if kind == "code":
            cell |= {"outputs": [], "execution_count": None}
        made.append(cell)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {
        "cells": made,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def write_notebook(notebook: dict[str, Any], path: Path) -> None:
    """Write it as Jupyter does."""
    text = json.dumps(notebook, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
