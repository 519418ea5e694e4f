"""The Python API: what the methods take, return and refuse."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import FrozenInstanceError
from io import BytesIO
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image

import pgdefect
from pgdefect.core.errors import (
    ImageError,
    MissingExtra,
    NoActiveDetector,
    PermissionDenied,
    UnknownCategory,
    UsageError,
)
from pgdefect.db.connection.engine import Database
from pgdefect.db.records.lifecycle import retire_detector
from pgdefect.vision.images.image import load_image
from tests.conftest import TINY


@pytest.fixture
def project(trained: Database) -> Iterator[pgdefect.Project]:
    with pgdefect.open(trained.url) as opened:
        yield opened


@pytest.fixture
def defective(parts: Path) -> Path:
    return parts / "test/stain/000.png"


def count(database: Database, table: str) -> int:
    with database.autocommit() as connection:
        row = connection.execute(f"SELECT count(*) FROM pgdefect.{table}").fetchone()
    return int(row[0])


def test_the_package_exports_what_it_says() -> None:
    assert pgdefect.__all__ == sorted(pgdefect.__all__)
    assert len(pgdefect.__all__) < 12
    for name in pgdefect.__all__:
        assert getattr(pgdefect, name) is not None
    with pytest.raises(AttributeError, match="'pgdefect' has no attribute 'nonsense'"):
        pgdefect.nonsense  # noqa: B018


def test_an_image_is_the_same_as_file_bytes_array_and_pillow_image(
    project: pgdefect.Project, trained: Database, defective: Path
) -> None:
    before = count(trained, "inspection"), count(trained, "image")
    pixels = load_image(defective)
    forms = [pixels, defective.read_bytes(), Image.open(defective), Image.fromarray(pixels)]
    found = [project.inspect(form, "parts") for form in forms]
    assert (count(trained, "inspection"), count(trained, "image")) == before
    stored = project.inspect(defective, "parts")
    assert stored.inspection_id is not None
    assert stored.image_id is not None
    assert stored.known_label == "anomalous"
    for one in found:
        assert one.verdict == stored.verdict == "anomalous"
        assert one.raw_score == pytest.approx(stored.raw_score, abs=1e-6)
        assert one.image_id is None
        np.testing.assert_allclose(one.patch_scores, stored.patch_scores, atol=1e-5)
        assert [r.box for r in one.regions] == [r.box for r in stored.regions]
    assert [one.path for one in found[:3]] == ["array", "bytes", "Pillow image"]
    assert project.inspect(pixels, "parts", name="camera 3").path == "camera 3"


def test_gray_arrays_count_as_three_equal_channels(
    project: pgdefect.Project, defective: Path
) -> None:
    gray = np.asarray(Image.open(defective).convert("L"))
    flat = project.inspect(gray, "parts")
    assert flat.raw_score == project.inspect(np.stack([gray] * 3, axis=2), "parts").raw_score


def test_a_file_is_stored_unless_it_is_not_to_be(
    project: pgdefect.Project, trained: Database, defective: Path, tmp_path: Path
) -> None:
    new = tmp_path / "new.png"
    Image.fromarray(load_image(defective)[::-1]).save(new)
    before = count(trained, "image")
    assert project.inspect(new, "parts", store=False).image_id is None
    assert count(trained, "image") == before
    assert project.inspect(str(new), "parts").image_id is not None
    assert count(trained, "image") == before + 1


@pytest.mark.parametrize(
    ("image", "error", "said"),
    [
        (np.zeros((8, 8, 3)), ImageError, r"must be uint8 of shape .*not float64 \(8, 8, 3\)"),
        (np.zeros((8, 8, 2), np.uint8), ImageError, r"not uint8 \(8, 8, 2\)"),
        (np.zeros((0, 8), np.uint8), ImageError, "0 x 8 pixels"),
        (b"nonsense", ImageError, "not a PNG"),
        (7, UsageError, "not int"),
        (".", UsageError, "is a folder; inspect_all takes folders"),
    ],
    ids=["float", "two channels", "empty", "no file", "number", "folder"],
)
def test_what_is_no_image_is_refused(
    project: pgdefect.Project, image: object, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        project.inspect(image, "parts")  # type: ignore[arg-type]


def test_an_image_in_memory_cannot_be_stored(project: pgdefect.Project) -> None:
    with pytest.raises(UsageError, match="save it and give its path, or leave out store"):
        project.inspect(np.zeros(TINY, np.uint8), "parts", store=True)


def test_a_detector_stays_loaded_until_another_is_in_force(
    project: pgdefect.Project, trained: Database, defective: Path
) -> None:
    pixels = load_image(defective)
    before = project.inspect(pixels, "parts")
    with patch("pgdefect.api.project.Inspector", side_effect=AssertionError("loaded again")):
        assert project.inspect(pixels, "parts").raw_score == before.raw_score
    # Another process changes the threshold, then takes the detector out of use.
    with pgdefect.open(trained.url) as other:
        other.threshold("parts", set=before.raw_score * 2)
    after = project.inspect(pixels, "parts")
    assert (after.verdict, after.threshold) == ("normal", before.raw_score * 2)
    retire_detector(trained, 1)
    with pytest.raises(NoActiveDetector, match=r"project\.train\('parts'\)"):
        project.inspect(pixels, "parts")
    with pytest.raises(UnknownCategory, match="known: parts"):
        project.inspect(pixels, "nosuch")


def test_a_warm_project_agrees_with_the_index_in_the_database(
    project: pgdefect.Project, parts: Path
) -> None:
    found = project.inspect_all(category="parts", split="test")
    stored = project.sql("SELECT path, raw_score FROM defect.inspections WHERE split = 'test'")
    scores = dict(zip(stored["path"], stored["raw_score"], strict=True))
    assert len(found) == 13
    assert {str(parts / path): score for path, score in scores.items()} == pytest.approx(
        {one.path: one.raw_score for one in found}, abs=1e-6
    )


def test_inspections_are_a_table(project: pgdefect.Project, parts: Path) -> None:
    found = project.inspect_all([parts / "test/stain", parts / "test/good/000.png"], "parts")
    assert len(found) == 4
    assert [one.verdict for one in found].count("anomalous") == 3
    assert found[-1].verdict == "normal"
    assert isinstance(found[:2], pgdefect.Table)
    frame = found.to_pandas()
    assert list(frame["verdict"]) == [one.verdict for one in found]
    assert frame["raw_score"].tolist() == [one.raw_score for one in found]
    html = found._repr_html_()
    assert html.count("<tr>") == 5
    assert "anomalous" in html
    with pytest.raises(FrozenInstanceError):
        found.rows = ()  # type: ignore[misc]
    with pytest.raises(UsageError, match="name the category"):
        project.inspect_all([parts])


def test_tables_escape_what_comes_from_files(project: pgdefect.Project, trained: Database) -> None:
    with trained.autocommit() as connection:
        connection.execute("UPDATE pgdefect.category SET name = '<script>x</script>'")
    html = project.categories()._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


def test_an_inspection_draws_itself(project: pgdefect.Project, defective: Path) -> None:
    pixels = load_image(defective)
    result = project.inspect(pixels, "parts")
    height, width = TINY
    assert result.anomaly_map.shape == (height, width)
    assert result.anomaly_map.max() == pytest.approx(result.patch_scores.max(), rel=0.2)
    drawn = result.overlay()
    assert drawn.shape == (height, width, 3)
    assert (drawn != pixels).any()
    panel = Image.open(BytesIO(result._repr_png_() or b""))
    assert panel.format == "PNG"
    assert panel.width > 2 * 220
    assert "anomalous" in repr(result)
    assert result.to_json()["verdict"] == "anomalous"


def test_an_inspection_of_a_file_that_is_gone_shows_text(
    project: pgdefect.Project, defective: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.png"
    copy.write_bytes(defective.read_bytes())
    result = project.inspect(copy, "parts", store=False)
    copy.unlink()
    assert result._repr_png_() is None
    with pytest.raises(ImageError, match="does not exist"):
        _ = result.image


def test_searching_by_file_array_and_id_finds_the_same(
    project: pgdefect.Project, defective: Path
) -> None:
    by_file = project.search(defective, category="parts", k=3)
    assert by_file.by == "defect"
    assert len(by_file) == 3
    assert str(defective) not in [n.image.path for n in by_file]
    assert [n.rank for n in by_file] == [1, 2, 3]
    # An array is known by its pixels alone, so that the file it came from is found too.
    by_array = project.search(load_image(defective), category="parts", k=4)
    assert by_array[0].image.path == str(defective)
    assert by_array[0].distance == pytest.approx(0.0, abs=1e-4)
    assert [n.image.id for n in by_array[1:]] == [n.image.id for n in by_file]
    by_id = project.search(str(by_array[0].image.id), k=3)
    assert [n.image.id for n in by_id] == [n.image.id for n in by_file]
    assert by_file.inspection is not None
    assert by_file.inspection.verdict == "anomalous"
    assert by_file.to_pandas()["distance"].tolist() == [n.distance for n in by_file]
    sheets = [Image.open(BytesIO(found._repr_png_() or b"")) for found in (by_file, by_array)]
    assert all(sheet.format == "PNG" for sheet in sheets)


def test_a_search_needs_to_know_the_category_of_an_array(project: pgdefect.Project) -> None:
    with pytest.raises(UsageError, match="name the category that an image in memory shows"):
        project.search(np.zeros(TINY, np.uint8))
    with pytest.raises(UsageError, match="name an image to look for"):
        project.search()


def test_evaluating_gives_figures_with_intervals(project: pgdefect.Project) -> None:
    measured = project.evaluate("parts", bootstrap=20)
    assert measured.figures["image_auroc"] == pytest.approx(1.0, abs=0.1)
    frame = measured.to_pandas().set_index("figure")
    assert frame.loc["image_auroc", "value"] == measured.figures["image_auroc"]
    assert frame.loc["image_auroc", "low"] <= frame.loc["image_auroc", "value"]
    assert "image_auroc" in measured._repr_html_()
    rejects, escapes = measured.misses()
    assert all(isinstance(path, str) for path in [*rejects, *escapes])


def test_a_threshold_is_shown_tried_and_set(project: pgdefect.Project) -> None:
    now = project.threshold("parts").threshold
    tried = project.threshold("parts", zero_escapes=True, dry_run=True)
    assert tried.dry_run
    assert project.threshold("parts").threshold == now
    project.threshold("parts", set=0.5)
    assert project.threshold("parts").threshold == 0.5
    with pytest.raises(UsageError, match="one rule, not f1_max and zero_escapes"):
        project.threshold("parts", f1_max=True, zero_escapes=True)
    with pytest.raises(UsageError, match="dry_run goes with a rule"):
        project.threshold("parts", dry_run=True)


def test_sql_reads_and_does_not_write(project: pgdefect.Project, trained: Database) -> None:
    frame = project.sql(
        "SELECT category, images FROM defect.categories WHERE category = %s", ["parts"]
    )
    assert frame.to_dict("records") == [{"category": "parts", "images": 29}]
    empty = project.sql("SELECT category, images FROM defect.categories WHERE false")
    assert list(empty.columns) == ["category", "images"]
    assert project.sql("SELECT '100%' AS share")["share"].tolist() == ["100%"]
    with pytest.raises(PermissionDenied, match="read-only"):
        project.sql("DELETE FROM pgdefect.inspection")
    with pytest.raises(UsageError, match="multiple commands"):
        project.sql("SELECT 1; COMMIT; DELETE FROM pgdefect.inspection")
    with pytest.raises(
        UsageError, match='the server refuses the query: syntax error at or near "nons'
    ):
        project.sql("nonsense")
    assert count(trained, "inspection") > 0


def test_without_pandas_the_extra_is_named(project: pgdefect.Project) -> None:
    with patch.dict("sys.modules", {"pandas": None}):
        for ask in (project.categories().to_pandas, lambda: project.sql("SELECT 1")):
            with pytest.raises(MissingExtra, match=r"'pandas'.*pip install 'pgdefect\[interop\]'"):
                ask()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"nonsense": 1}, "there is no setting 'nonsense'; patchcore has: backbone, layers"),
        ({"max_steps": 9}, r"max_steps goes with kind='efficient_ad', not with patchcore"),
        ({"pca_dim": -1}, "pca_dim must be at least 1, or 0 to keep all, not -1"),
        ({"image_size": "big"}, "image_size is a number or HEIGHTxWIDTH, not 'big'"),
        ({"coreset_ratio": "0.1"}, "has a value of a wrong type"),
    ],
    ids=["unknown", "of another kind", "value", "size", "type"],
)
def test_settings_that_do_not_fit_are_refused_before_any_work(
    project: pgdefect.Project, settings: dict[str, object], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        project.train("parts", **settings)


def test_a_database_without_schema_at_a_url_is_left_alone(empty_database: Database) -> None:
    with pytest.raises(pgdefect.PgdefectError, match="no schema of pgdefect's"):
        pgdefect.open(empty_database.url)
