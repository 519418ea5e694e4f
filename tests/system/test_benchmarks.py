"""The benchmarks run; what they measure is no matter here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def test_the_cheapest_benchmark_runs_and_keeps_its_figures(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--results", str(tmp_path), "start"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert 'python -c "import anomalib.models"' in done.stdout
    kept = json.loads((tmp_path / "start.quick.json").read_text())
    assert kept["machine"]["cpus"] >= 1
    for row in kept["reports"][0]["rows"]:
        assert row["ratio"] == row["peer_seconds"] / row["seconds"]
        assert row["floor_seconds"] < row["seconds"]


def test_unknown_names_are_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "nonsense"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "no benchmark nonsense; there are start, features" in done.stderr
