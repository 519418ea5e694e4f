"""`pgdefect demo`, with a dozen solar cells each."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from PIL import Image

from pgdefect.db.connection.engine import Database

from .conftest import PROGRAM, Cli, bundled_path, value

pytestmark = pytest.mark.slow


@pytest.fixture
def small_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dozen solar cells each, at the size of the trained template."""
    from pgdefect.usecases import demo
    from pgdefect.usecases.train import train

    monkeypatch.setattr(demo, "TRAIN_IMAGES", 12)
    monkeypatch.setattr(demo, "TEST_NORMAL", 4)
    monkeypatch.setattr(demo, "TEST_ANOMALOUS", 6)
    options: Callable[..., Any] = train.TrainOptions
    monkeypatch.setattr(demo, "TrainOptions", lambda **kw: options(image_size=(128, 128), **kw))


def test_demo(
    small_demo: None, good: Cli, trained: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [PROGRAM])
    began = time.perf_counter()
    result = good(trained, "demo", "--json", "--output", tmp_path / "out").json
    elapsed = time.perf_counter() - began
    assert set(result) >= {"categories", "query", "neighbors", "contact_sheet", "queries", "psql"}
    assert [c["category"] for c in result["categories"]] == ["solar_mono", "solar_poly"]
    for category in result["categories"]:
        assert 0.4 <= category["image_auroc"] <= 1
        assert (category["training_images"], category["held_out_images"]) == (12, 12)
        assert (category["test_normal"], category["test_anomalous"]) == (4, 6)
        assert sum(category["seconds"].values()) < elapsed
    assert result["by"] == "defect"
    assert 0 < len(result["neighbors"]) <= 10
    assert {n["category"] for n in result["neighbors"]} == {"solar_mono"}
    assert result["query"]["known_label"] == "anomalous"
    with Image.open(result["contact_sheet"]) as sheet:
        sheet.load()
    assert len(result["queries"]) == 3
    with psycopg.connect(trained.url) as connection:
        answers = [connection.execute(query).fetchall() for query in result["queries"]]
    assert {row[0] for row in answers[0]} == {"parts", "solar_mono", "solar_poly"}
    assert len(answers[1]) <= 5
    # The same ten images that the command listed.
    assert [row[3] for row in answers[2]] == [n["path"] for n in result["neighbors"]]
    printed = subprocess.run(
        ["bash", "-c", f"{result['psql']} -- -At -c 'SELECT 1'"],
        env={**os.environ, "PATH": bundled_path()},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert printed.stdout == "1\n", printed.stderr

    # Again, for people: it replaces its detectors and prints all of it.
    monkeypatch.chdir(tmp_path)
    # The same package in another virtual environment: no image is there twice.
    root = value(trained, "SELECT path FROM pgdefect.image_root WHERE path ~ '/elpv_dataset/data$'")
    (elsewhere := tmp_path / "elpv_dataset" / "data").mkdir(parents=True)
    good(trained, "move-root", root, elsewhere)
    images = value(trained, "SELECT count(*) FROM pgdefect.image")
    text = good(trained, "demo").out
    assert value(trained, "SELECT count(*) FROM pgdefect.image") == images
    roots = value(trained, "SELECT array_agg(path) FROM pgdefect.image_root")
    assert root in roots
    assert str(elsewhere) not in roots
    for part in ("image AUROC", "Seconds per stage", "ANOMALOUS: ", "worst patch", "rank"):
        assert part in text
    assert str(tmp_path / "pgdefect-demo" / "contact_sheet.png") in text
    for query in re.findall(r"^  (SELECT .*;)$", text, re.MULTILINE):
        with psycopg.connect(trained.url) as connection:
            connection.execute(query)
    assert len(good(trained, "detectors", "--category", "solar_mono", "--json").json) == 1
