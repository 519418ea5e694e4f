"""`pgdefect inspect`: which images, what it prints, draws and stores."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import psycopg
import pytest
from PIL import Image
from sqlalchemy import Connection

from pgdefect.db.connection.engine import Database
from pgdefect.usecases.inspect import record_files as recording

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
        label: [r["raw_score"] for r in rows if r["known_label"] == label]
        for label in ("normal", "anomalous")
    }
    assert len(scores["anomalous"]) == 9
    assert min(scores["anomalous"]) > max(scores["normal"])
    # The threshold hangs on fifteen images alone.
    caught = [r for r in rows if r["known_label"] == "anomalous" and r["verdict"] == "anomalous"]
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
    assert contents(trained) == before | {"inspection": before["inspection"] + 3}


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
    assert contents(trained) == before | {"inspection": before["inspection"] + 12}


def test_content_accepted_while_it_is_inspected_gets_no_verdict_of_the_photograph_before(
    cli: Cli, trained: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock_images = recording.lock_images

    def too_late(connection: Connection, image_ids: Collection[int]) -> set[int]:
        with psycopg.connect(trained.url) as other:
            other.execute(
                "UPDATE pgdefect.image SET sha256 = repeat('0', 64) "
                "WHERE path = 'test/good/000.png'"
            )
        return lock_images(connection, image_ids)

    with psycopg.connect(trained.url) as connection:
        connection.execute("DELETE FROM pgdefect.inspection")
    monkeypatch.setattr(recording, "lock_images", too_late)
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


def test_photographs_carry_their_context(
    good: Cli, cli: Cli, trained: Database, parts: Path, tmp_path: Path
) -> None:
    """From the path, a manifest and a word for all; said again it changes nothing."""
    folder = tmp_path / "L2" / "late"
    folder.mkdir(parents=True)
    for n in range(2):
        (folder / f"S{n}_20260504T2230{n:02}.png").write_bytes(
            (parts / f"test/good/{n:03}.png").read_bytes() + bytes([n])
        )
    context = (
        *("--path-pattern", "{line}/{shift}/{part}_{taken:%Y%m%dT%H%M%S}.png"),
        *("--time-zone", "Europe/Berlin", "--attributes", '{"camera": "left"}'),
    )
    for _ in range(2):
        good(trained, "inspect", tmp_path, "--category", "parts", *context, "--station", "north")
    found = "SELECT part, taken_at, attributes FROM defect.images WHERE split = 'production'"
    with psycopg.connect(trained.url) as connection:
        rows = connection.execute(f"{found} ORDER BY path").fetchall()
        said = connection.execute(
            "SELECT event, station, count(*) FROM defect.inspections WHERE split = 'production' "
            "GROUP BY 1, 2 ORDER BY 1"
        ).fetchall()
        days = connection.execute(
            "SELECT to_char(starts, 'DD HH24'), \"group\", inspected "
            "FROM defect.rejects(per => 'hour', by => 'shift', split => 'production')"
        ).fetchall()
    assert [row[0] for row in rows] == ["S0", "S1"]
    assert rows[0][1].astimezone(UTC) == datetime(2026, 5, 4, 20, 30, tzinfo=UTC)
    assert rows[0][2] == {"line": "L2", "shift": "late", "camera": "left"}
    assert said == [("inspection", "north", 2), ("re-inspection", "north", 2)]
    assert [row[1:] for row in days] == [("late", 2)]
    # A manifest names the files, and what else is known of them.
    manifest = tmp_path / "shift.csv"
    manifest.write_text(
        "path,part,taken_at,batch,split\n"
        "L2/late/S0_20260504T223000.png,S0,2026-05-04T22:30:00+02:00,7,production\n"
    )
    [judged] = good(
        trained, "inspect", "--manifest", manifest, "--category", "parts", "--json"
    ).json["inspections"]
    assert value(
        trained, "SELECT attributes FROM defect.images WHERE image_id = %s", judged["image_id"]
    ) == {"line": "L2", "shift": "late", "camera": "left", "batch": 7}
    # What contradicts the record is no silent change of it.
    wrong = cli(
        trained, "inspect", tmp_path, "--category", "parts", "--attributes", '{"shift": "early"}'
    )
    assert wrong.code == 1
    assert "was recorded with another part, time or attribute" in wrong.err
    assert value(trained, "SELECT count(*) FROM pgdefect.image WHERE attributes @> %s",
                 '{"shift": "early"}') == 0  # fmt: skip


def test_context_of_data_set_images_is_left_out_and_that_is_said(
    good: Cli, trained: Database, parts: Path
) -> None:
    told = good(
        *(trained, "inspect", parts / "test/good", "--category", "parts"),
        *("--attributes", '{"shift": "late"}'),
    )
    assert "4 of the images belong to a data set" in told.err
    assert "were not recorded for them" in told.err
    assert "pgdefect ingest MANIFEST --accept-changes" in told.err
    assert value(trained, "SELECT count(*) FROM pgdefect.image WHERE attributes ? 'shift'") == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--path-pattern", "{line}/x.png"), "does not fit the pattern '{line}/x.png'"),
        (("--path-pattern", "no field.png"), "it has no field such as {line}"),
        (("--path-pattern", "{a}_{a}.png"), "{a} stands in it twice"),
        (("--path-pattern", "{taken}.png"), "{taken} needs a format"),
        (("--path-pattern", "{taken:%Q}.png"), "%Q is no directive"),
        (("--path-pattern", "{a.png"), "a brace is not closed"),
        (("--path-pattern", "{taken:%H%M%S}.png"), "000.png' does not fit"),
        (("--attributes", "[1]"), "is a JSON object"),
        (("--attributes", "{"), "is no JSON"),
        (("--exif-time",), "000.png' has no EXIF time"),
        (("--exif-time", "--time-zone", "Mars/Base"), "not 'Mars/Base'"),
        (("--event-key", "a\nb"), "1 to 200 printable characters"),
        (("--attributes", '{"a": 1}', "--no-store"), "whose inspections are stored"),
    ],
)
def test_context_that_cannot_be_used_stops_before_anything_is_judged(
    cli: Cli, trained: Database, parts: Path, words: tuple[str, ...], message: str
) -> None:
    before = contents(trained)
    result = cli(trained, "inspect", parts / "test/chip/000.png", "--category", "parts", *words)
    assert result.code in (1, 2)
    assert message in result.error
    assert contents(trained) == before


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("path,taken_at\n{0},yesterday\n", "000.png' has the time 'yesterday', which is none"),
        ("path,taken_at\n{0},20260504\n", "which is none"),
        ("path,split\n{0},test\n", "is of split 'test'; inspected photographs are production"),
        ("path,label\n{0},good\n", "has a label"),
        ("path,line\nother.png,1\n", "is not in the manifest"),
        ("path,line\n{0},1\n{0},2\n", "is already on line 2"),
    ],
)
def test_a_manifest_that_cannot_be_used_stops_before_anything_is_judged(
    cli: Cli, trained: Database, parts: Path, tmp_path: Path, table: str, message: str
) -> None:
    before = contents(trained)
    photo = parts / "test/chip/000.png"
    (tmp_path / "m.csv").write_text(table.format(photo))
    result = cli(trained, "inspect", photo, "--category", "parts", "--manifest", tmp_path / "m.csv")
    assert result.code == 1
    assert message in result.error
    assert contents(trained) == before


def test_the_time_of_a_photograph_is_read_from_exif(
    good: Cli, trained: Database, parts: Path, tmp_path: Path
) -> None:
    exif = Image.Exif()
    details = exif.get_ifd(0x8769)
    details[0x9003], details[0x9011] = "2026:05:04 07:30:00", "+02:00"
    Image.open(parts / "test/good/000.png").save(tmp_path / "shot.jpg", exif=exif, quality=95)
    good(trained, "inspect", tmp_path / "shot.jpg", "--category", "parts", "--exif-time")
    taken = value(trained, "SELECT taken_at FROM defect.images WHERE path LIKE %s", "%shot.jpg")
    assert taken.astimezone(UTC) == datetime(2026, 5, 4, 5, 30, tzinfo=UTC)


def test_a_request_that_is_made_again_is_answered_and_not_doubled(
    good: Cli, trained: Database, parts: Path
) -> None:
    words = ("inspect", parts / "test/chip", "--category", "parts", "--event-key", "request 7")
    first = good(trained, *words, "--json").json
    again = good(trained, *words, "--json").json
    assert (first["resumed"], again["resumed"]) == (0, 3)
    assert again["inspections"] == first["inspections"]
    assert "3 of them had been inspected before" in good(trained, *words).err
    assert value(trained, "SELECT count(*) FROM defect.inspections WHERE event_key = %s",
                 "request 7") == 3  # fmt: skip
    # Another request is another inspection.
    good(trained, *words[:-1], "request 8")
    assert value(trained, "SELECT count(*) FROM pgdefect.inspection") == 13 + 6
