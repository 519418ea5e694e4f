"""`pgdefect inspect`: which images, what it prints, draws and stores."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

import numpy as np
import psycopg
import pytest
from PIL import Image
from sqlalchemy import Connection

from pgdefect.db.connection.engine import Database
from pgdefect.usecases.inspect import inspect as inspecting

from .conftest import Cli, contents, value


def test_inspect_stored_images(good: Cli, trained: Database) -> None:
    result = good(trained, "inspect", "--category", "parts", "--split", "test", "--json")
    rows = result.json["inspections"]
    assert len(rows) == 13
    assert result.json["threshold"] == pytest.approx(
        value(trained, "SELECT threshold FROM pgdefect.detector")
    )
    for row in rows:
        assert (row["verdict"] == "anomalous") == (row["raw_score"] > row["threshold"])
        assert 0 <= row["normalized_score"] <= 1
        x, y, width, height = row["worst_box"]
        assert x + width <= 128
        assert y + height <= 128
    scores = {
        label: [r["raw_score"] for r in rows if r["label"] == label]
        for label in ("normal", "anomalous")
    }
    assert len(scores["anomalous"]) == 9
    assert min(scores["anomalous"]) > max(scores["normal"])
    # The threshold hangs on fifteen images alone.
    caught = [r for r in rows if r["label"] == "anomalous" and r["verdict"] == "anomalous"]
    assert len(caught) >= 8
    assert result.json["failed"] == []
    # A second inspection of each, beside the first.
    events = "SELECT count(*) FROM defect.inspections WHERE event = %s AND in_force = %s"
    assert value(trained, events, "inspection", False) == 13
    assert value(trained, events, "re-inspection", True) == 13


def test_inspect_files_folders_and_patterns(good: Cli, trained: Database, parts: Path) -> None:
    def judged(*paths: object) -> list[str]:
        rows = good(trained, "inspect", *paths, "--category", "parts", "--json").json
        return sorted(
            Path(row["path"]).relative_to(parts).as_posix() for row in rows["inspections"]
        )

    chips = [f"test/chip/{n:03d}.png" for n in range(3)]
    assert judged(parts / "test/chip/001.png") == chips[1:2]
    assert judged(parts / "test/chip") == chips
    assert judged(parts / "test/chip/*.png") == chips
    assert judged(parts / "test/chip", parts / "test/*/001.png") == sorted(
        [*chips, "test/good/001.png", "test/scratch/001.png", "test/stain/001.png"]
    )
    # Masks are never taken for images.
    assert len(judged(parts)) == 29


def test_inspect_table(good: Cli, trained: Database, parts: Path) -> None:
    result = good(trained, "inspect", parts / "test/stain", "--category", "parts")
    heading, _, *rows = result.out.splitlines()
    assert heading.startswith("verdict")
    assert len(rows) == 3
    assert all(row.startswith("anomalous") and "stain" in row for row in rows)
    assert result.err == "3 of 3 images are anomalous\n"


def test_inspect_without_storing(good: Cli, trained: Database, parts: Path, tmp_path: Path) -> None:
    Image.open(parts / "test/chip/000.png").rotate(90).save(tmp_path / "new.png")
    before = contents(trained)
    arguments = ("inspect", tmp_path / "new.png", "--category", "parts", "--json")
    [row] = good(trained, *arguments, "--no-store").json["inspections"]
    assert row["inspection_id"] is None
    assert contents(trained) == before
    [stored] = good(trained, *arguments).json["inspections"]
    assert stored["raw_score"] == pytest.approx(row["raw_score"])
    assert contents(trained)["inspection"] == before["inspection"] + 1
    assert (
        value(trained, "SELECT split FROM pgdefect.image WHERE id = %s", stored["image_id"])
        == "production"
    )


def test_another_photograph_under_a_recorded_name_is_not_taken_for_the_first(
    good: Cli, cli: Cli, trained: Database, parts: Path, tmp_path: Path
) -> None:
    camera = tmp_path / "camera"
    camera.mkdir()
    stained, part = (
        (parts / name).read_bytes() + b"\0" for name in ("test/stain/000.png", "test/good/001.png")
    )
    (camera / "latest.png").write_bytes(stained)
    first = good(trained, "inspect", camera, "--category", "parts", "--json").json
    before = contents(trained)
    kept = value(trained, "SELECT array_agg(raw_score ORDER BY id) FROM pgdefect.inspection")
    (camera / "latest.png").write_bytes(part)
    (camera / "next.png").write_bytes(part + b"\0")
    again = cli(trained, "inspect", camera, "--category", "parts", "--json")
    assert again.code == 1
    [judged] = again.json["inspections"]
    assert judged["path"] == str(camera / "next.png")
    assert "latest.png' has changed since it was inspected; give each photograph" in again.err
    now = value(trained, "SELECT array_agg(raw_score ORDER BY id) FROM pgdefect.inspection")
    assert now[: len(kept)] == kept
    assert contents(trained)["image"] == before["image"] + 1
    # The other one alone: nothing is stored.
    assert cli(trained, "inspect", camera / "latest.png", "--category", "parts").code == 1
    assert contents(trained)["inspection"] == before["inspection"] + 1
    # Unstored it can be judged; the first one's row is that of the first one still.
    unstored = good(
        trained, "inspect", camera / "latest.png", "--category", "parts", "--no-store", "--json"
    ).json["inspections"]
    assert unstored[0]["raw_score"] == pytest.approx(judged["raw_score"], rel=1e-4)
    assert value(
        trained,
        "SELECT raw_score FROM defect.inspections WHERE image_id = %s",
        first["inspections"][0]["image_id"],
    ) == pytest.approx(first["inspections"][0]["raw_score"])


def test_a_changed_file_named_by_its_path_is_not_recorded_beside_what_was_ingested(
    cli: Cli, trained: Database, own_files: Path
) -> None:
    """Its folder is not the one that was ingested."""
    shutil.copy(own_files / "test/stain/000.png", own_files / "test/good/000.png")
    with (own_files / "test/good/000.png").open("ab") as file:
        file.write(b"\0")
    before = contents(trained)
    result = cli(trained, "inspect", own_files / "test/good", "--category", "parts", "--json")
    assert result.code == 1
    [failed] = result.json["failed"]
    assert failed["path"] == str(own_files / "test/good/000.png")
    assert "--category parts --accept-changes" in failed["reason"]
    assert len(result.json["inspections"]) == 3
    assert contents(trained) == before


def test_a_stored_image_whose_file_has_changed_is_not_judged_as_it(
    cli: Cli, trained: Database, own_files: Path
) -> None:
    shutil.copy(own_files / "test/stain/000.png", own_files / "test/good/000.png")
    before = contents(trained)
    result = cli(trained, "inspect", "--category", "parts", "--split", "test", "--json")
    assert result.code == 1
    assert len(result.json["inspections"]) == 12
    [failed] = result.json["failed"]
    assert failed["path"] == str(own_files / "test/good/000.png")
    assert "--category parts --accept-changes" in failed["reason"]
    assert contents(trained) == before


def test_content_accepted_while_it_is_inspected_gets_no_verdict_of_the_photograph_before(
    cli: Cli, trained: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock_images = inspecting.lock_images

    def too_late(connection: Connection, image_ids: Collection[int]) -> set[int]:
        with psycopg.connect(trained.url) as other:
            other.execute(
                "UPDATE pgdefect.image SET sha256 = repeat('0', 64) "
                "WHERE path = 'test/good/000.png'"
            )
        return lock_images(connection, image_ids)

    with psycopg.connect(trained.url) as connection:
        connection.execute("DELETE FROM pgdefect.inspection")
    monkeypatch.setattr(inspecting, "lock_images", too_late)
    result = cli(trained, "inspect", "--category", "parts", "--split", "test", "--json")
    assert result.code == 1
    [failed] = result.json["failed"]
    assert failed["path"].endswith("test/good/000.png")
    assert len(result.json["inspections"]) == contents(trained)["inspection"] == 12


def test_a_mask_of_another_size_is_told_of_and_left_out_of_the_picture(
    cli: Cli, trained: Database, own_files: Path, tmp_path: Path
) -> None:
    Image.new("L", (7, 5)).save(own_files / "ground_truth/chip/000_mask.png")
    maps = tmp_path / "maps"
    result = cli(
        trained,
        "inspect",
        own_files / "test/chip",
        "--category",
        "parts",
        "--save-maps",
        maps,
        "--json",
    )
    assert result.code == 1
    assert len(result.json["inspections"]) == len(list(maps.iterdir())) == 3
    assert "000_mask.png' has 5 rows and 7 columns" in result.err


def test_inspect_draws_anomaly_maps_with_the_ground_truth_where_it_is_known(
    good: Cli, trained: Database, parts: Path, tmp_path: Path
) -> None:
    maps = tmp_path / "deep" / "maps"
    good(
        trained, "inspect", parts / "test/chip", parts / "test/good/000.png", "--category", "parts",
        "--save-maps", maps,
    )  # fmt: skip
    sizes = {}
    for path in maps.iterdir():
        with Image.open(path) as picture:
            picture.load()
            sizes[path.name] = picture.size
    assert set(sizes) == {"chip_000.png", "chip_001.png", "chip_002.png", "good_000.png"}
    # Picture and overlay beside each other, and a third pane where a mask is known.
    assert sizes["chip_000.png"][0] > 1.3 * sizes["good_000.png"][0]
    pixels = np.asarray(Image.open(maps / "chip_000.png").convert("RGB")).astype(int)
    assert pixels.std() > 10
