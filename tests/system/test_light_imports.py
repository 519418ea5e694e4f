"""What starts without the heavy libraries."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pgdefect.db.connection.engine import Database

HEAVY = {
    *("torch", "torchvision", "anomalib", "timm", "lightning", "onnx", "onnxscript"),
    *("pyarrow", "pandas"),
}
LOADED = """
import sys
from pgdefect.cli.main import run
code = run(sys.argv[1:])
sys.stdout.flush()
names = {name.split(".")[0] for name in sys.modules}
print(code, *sorted(names), sep="\\n", file=sys.stderr)
"""


def loaded_by(*arguments: object) -> set[str]:
    """The top-level modules that a successful command has loaded, in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    lines = done.stderr.splitlines()
    start = next(n for n, line in enumerate(lines) if line.isdigit())
    assert lines[start] == "0", done.stderr
    return set(lines[start + 1 :])


def test_help_loads_next_to_nothing() -> None:
    loaded = loaded_by("--help")
    assert not loaded & (HEAVY | {"numpy", "sqlalchemy", "psycopg", "PIL", "openvino", "alembic"})


def test_importing_the_package_loads_next_to_nothing() -> None:
    code = "import sys, pgdefect; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = set(done.stdout.split())
    assert "pgdefect" in loaded
    assert not loaded & (HEAVY | {"numpy", "sqlalchemy", "psycopg", "PIL", "openvino", "typer"})


def test_queries_and_inspections_load_no_training_library(trained: Database, parts: Path) -> None:
    url = ("--database-url", trained.url)
    assert not loaded_by(*url, "categories") & (HEAVY | {"openvino", "PIL"})
    assert not loaded_by(*url, "doctor") & (HEAVY | {"openvino", "PIL"})
    assert not loaded_by(*url, "db", "role", "list") & (HEAVY | {"openvino", "PIL"})
    assert not loaded_by(*url, "search", "--patch", "1:0") & HEAVY
    image = parts / "test/chip/000.png"
    assert not loaded_by(*url, "inspect", image, "--category", "parts") & HEAVY
    assert not loaded_by(*url, "search", image) & HEAVY
    assert not loaded_by(*url, "ingest", parts, "--category", "parts") & HEAVY
