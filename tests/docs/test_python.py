"""The page on Python and the notebook: every block runs, and the outputs shown are such."""

from __future__ import annotations

import base64
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from docs.notebook import blocks_of, code_cells, notebook_of, run_cell, run_notebook
from docs.tour import CELLS
from pgdefect.db.connection.engine import Database
from pgdefect.db.records.lifecycle import delete_category

DOCS = Path(__file__).parents[2] / "docs"
PAGE, TOUR = DOCS / "python.md", DOCS / "tour.ipynb"
STORED: dict[str, Any] = json.loads(TOUR.read_text(encoding="utf-8"))


@pytest.fixture
def photographs(
    trained: Database, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A working directory with the folder `parts`, and a database that settings name."""
    shutil.copytree(parts, tmp_path / "parts")
    # The extractor stays, so that its export is not made again.
    delete_category(trained, "parts")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PGDEFECT_DATABASE_URL", trained.url)
    return tmp_path


def test_the_blocks_of_the_page_run_in_order(photographs: Path) -> None:
    namespace: dict[str, Any] = {}
    printed, values = "", []
    blocks = blocks_of(PAGE)
    assert len(blocks) >= 10
    for number, block in enumerate(blocks, start=1):
        text, value = run_cell(block, namespace, f"python.md, block {number}")
        printed += text
        values.append(value)
    assert "29 images, 0 unreadable" in printed
    assert re.search(r"\d+ vectors from 16 images", printed)
    assert re.search(r"image AUROC [01]\.\d{3}", printed)
    assert "must be uint8" in printed
    assert (photographs / "stain.png").is_file()
    assert (photographs / "similar.png").is_file()
    tables = [value for value in values if hasattr(value, "columns")]
    assert [len(table) for table in tables] == [13, 2]


def test_the_notebook_runs_and_shows_what_it_is_stored_with(photographs: Path) -> None:
    notebook = notebook_of(CELLS)
    run_notebook(notebook, {})
    kinds = [_kinds(cell) for cell in code_cells(notebook)]
    assert kinds == [_kinds(cell) for cell in code_cells(STORED)]
    assert sum("image/png" in kind for kind in kinds) >= 2
    assert sum("text/html" in kind for kind in kinds) >= 3


def test_the_stored_notebook_is_of_these_cells_and_of_no_machine() -> None:
    assert (STORED["nbformat"], STORED["nbformat_minor"]) == (4, 5)
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in STORED["cells"]]
    assert cells == [(kind, text.strip()) for kind, text in CELLS], "run: python -m docs tour"
    assert all(cell["execution_count"] for cell in code_cells(STORED))
    text = re.sub(r'"image/png": "[^"]*"', "", TOUR.read_text(encoding="utf-8"))
    assert not re.search(r"/(?:tmp|home|root|work|Users|var)/", text)
    for cell in code_cells(STORED):
        for output in cell["outputs"]:
            if png := output.get("data", {}).get("image/png"):
                assert base64.b64decode(png).startswith(b"\x89PNG")


def _kinds(cell: dict[str, Any]) -> list[str]:
    """The MIME types of a cell's outputs; a stream's is its name."""
    return [
        kind
        for output in cell["outputs"]
        for kind in sorted(output.get("data", [output.get("name")]))
    ]
