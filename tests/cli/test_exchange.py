"""What `export` writes can be read by others, whole, and stands in nobody's way."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zlib
from base64 import b64decode
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
from PIL import Image
from psycopg import sql
from sqlalchemy import text

from pgdefect.core.errors import UsageError
from pgdefect.db.connection.engine import Database
from pgdefect.db.connection.read_blocks import read_blocks, snapshot
from pgdefect.db.records.detectors import active_detector
from pgdefect.db.search.queries import bank_cells, read_bank
from pgdefect.usecases.exchange.export_folder import new_folder
from pgdefect.vision.patchcore.transform import apply_transform

from .conftest import Cli, value

CHECKOUT = Path(__file__).resolve().parents[2]


def test_parquet_holds_the_rows_and_vectors_of_the_database(
    trained: Database, good: Cli, tmp_path: Path
) -> None:
    result = good(trained, "export", "parts", tmp_path / "out", "--json")
    bank = active_detector(trained, "parts").bank
    tables = {table["table"]: (table["rows"], table["dim"]) for table in result.json["tables"]}
    expected = {
        "images": (29, None),
        "inspections": (13, None),
        f"memory_bank-{bank.id}": (bank.num_vectors, bank.embedding_dim),
        f"memory_bank_raw-{bank.id}": (bank.num_vectors, 152),
        "image_embedding-1": (29, 152),
    }
    assert expected.items() <= tables.items()

    images = parquet.read_table(tmp_path / "out/images.parquet").to_pylist()
    assert value(trained, "SELECT count(*) FROM defect.images") == len(images) == 29
    scratch = next(row for row in images if row["path"].endswith("test/scratch/000.png"))
    assert (scratch["label"], scratch["defect_type"]) == ("anomalous", "scratch")
    assert scratch["mask_path"].endswith("ground_truth/scratch/000_mask.png")
    score = "SELECT raw_score FROM pgdefect.inspection WHERE id = %s"
    assert scratch["raw_score"] == value(trained, score, scratch["inspection_id"])
    assert scratch["inspected_at"].tzinfo is not None

    inspections = parquet.read_table(tmp_path / "out/inspections.parquet").to_pylist()
    assert all(
        np.max(row["anomaly_map"]) == pytest.approx(row["raw_score"], rel=1e-6)
        for row in inspections
    )

    table = parquet.read_table(tmp_path / f"out/memory_bank-{bank.id}.parquet")
    assert str(table.schema.field("embedding").type) == "fixed_size_list<element: halffloat>[153]"
    vectors = table["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, 153)
    np.testing.assert_array_equal(vectors, read_bank(trained, bank))
    columns = [table[name].to_numpy() for name in ("image_id", "row", "col")]
    np.testing.assert_array_equal(columns, bank_cells(trained, bank))

    raw = parquet.read_table(tmp_path / f"out/memory_bank_raw-{bank.id}.parquet")["embedding"]
    again = raw.combine_chunks().flatten().to_numpy().reshape(-1, 152).astype(np.float32)
    np.testing.assert_allclose(apply_transform(bank.transform, again), vectors, atol=2e-3)

    about = json.loads(table.schema.metadata[b"pgdefect"])
    fingerprint = value(trained, "SELECT fingerprint FROM pgdefect.extractor")
    assert (about["extractor"]["fingerprint"], about["metric"]) == (fingerprint, "cosine")
    assert about["dim"] == 153
    assert about["transform"]["kind"] == "centered"
    np.testing.assert_allclose(about["transform"]["mean"], bank.transform.mean, rtol=1e-6)
    np.testing.assert_allclose(
        about["transform"]["components"], bank.transform.components, rtol=1e-6, atol=1e-9
    )


def test_numpy_arrays_need_no_pickle(trained: Database, good: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    good(trained, "export", "parts", folder, "--to", "numpy")
    bank = active_detector(trained, "parts").bank

    def load(name: str) -> Any:
        return np.load(folder / f"memory_bank-{bank.id}" / f"{name}.npy", allow_pickle=False)

    assert load("embedding").dtype == np.float16
    np.testing.assert_array_equal(load("embedding"), read_bank(trained, bank))
    np.testing.assert_array_equal(
        [load("image_id"), load("row"), load("col")], bank_cells(trained, bank)
    )
    embeddings = np.load(folder / "image_embedding-1/embedding.npy", allow_pickle=False)
    np.testing.assert_allclose(np.linalg.norm(embeddings.astype(float), axis=1), 1, atol=1e-2)
    manifest = json.loads((folder / "export.json").read_text())
    assert manifest["tables"][f"memory_bank-{bank.id}"]["metric"] == "cosine"
    lines = (folder / "images.csv").read_text().splitlines()
    assert len(lines) == 30
    assert lines[0].startswith("image_id,category,split,label,")


def test_defect_embeddings_and_regions_are_written_where_there_are_any(
    trained: Database, good: Cli, tmp_path: Path
) -> None:
    with trained.begin() as connection:
        for table in ("defect_embedding", "defect_region"):
            connection.execute(text(f"DROP TABLE IF EXISTS pgdefect.{table}_1"))
            connection.execute(
                text(
                    f"CREATE TABLE pgdefect.{table}_1 PARTITION OF pgdefect.{table} "
                    "FOR VALUES IN (1)"
                )
            )
        connection.execute(
            text(
                "INSERT INTO pgdefect.defect_embedding (extractor_id, image_id, detector_id, "
                "embedding) SELECT 1, image_id, detector_id, '[1,2,3]' FROM pgdefect.inspection"
            )
        )
        connection.execute(
            text(
                "INSERT INTO pgdefect.defect_region (extractor_id, id, image_id, detector_id, "
                "rank, x, y, width, height, num_patches, area, peak_score, mean_score, embedding) "
                "SELECT 1, id, image_id, detector_id, 1, 8, 16, 24, 32, 12, 0.05, raw_score, 0.25, "
                "'[4,5,6]' FROM pgdefect.inspection"
            )
        )
    good(trained, "export", "parts", tmp_path / "tables")
    for name, first in (("defect_embedding", [1, 2, 3]), ("defect_region", [4, 5, 6])):
        table = parquet.read_table(tmp_path / f"tables/{name}-1.parquet")
        assert table.num_rows == 13
        assert table["embedding"][0].as_py() == first
    assert table["width"].to_pylist() == [24] * 13
    good(trained, "export", "parts", tmp_path / "arrays", "--to", "numpy")
    peaks = np.load(tmp_path / "arrays/defect_region-1/peak_score.npy")
    assert peaks.tolist() == table["peak_score"].to_pylist()

    good(trained, "export", "parts", tmp_path / "samples", "--to", "fiftyone")
    samples = json.loads((tmp_path / "samples/samples.json").read_text())["samples"]
    with_regions = [sample for sample in samples if "regions" in sample]
    assert len(with_regions) == 13
    [region] = with_regions[0]["regions"]["detections"]
    assert region["bounding_box"] == [8 / 128, 16 / 128, 24 / 128, 32 / 128]
    assert region["peak_score"] == pytest.approx(with_regions[0]["raw_score"], rel=1e-6)


def test_where_a_vector_came_from_is_null_if_it_is_not_known(
    trained: Database, good: Cli, tmp_path: Path
) -> None:
    with trained.begin() as connection:
        connection.execute(text("UPDATE pgdefect.memory_bank_patch SET image_id = 0"))
    good(trained, "export", "parts", tmp_path / "rows")
    [file] = (tmp_path / "rows").glob("memory_bank-*.parquet")
    table = parquet.read_table(file)
    assert {table[name].null_count for name in ("image_id", "row", "col")} == {table.num_rows}
    good(trained, "export", "parts", tmp_path / "arrays", "--to", "numpy")
    [file] = (tmp_path / "arrays").glob("memory_bank-*/image_id.npy")
    assert set(np.load(file)) == {-1}


def test_an_earlier_export_is_replaced_on_request_and_nothing_else_is(
    trained: Database, cli: Cli, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    assert cli(trained, "export", "parts", folder).code == 0
    again = cli(trained, "export", "parts", folder, "--to", "numpy")
    assert again.code == 2
    assert "already exists and is not empty; --force replaces it" in again.error
    assert cli(trained, "export", "parts", folder, "--to", "numpy", "--force").code == 0
    assert not list(folder.glob("*.parquet"))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/mine.png").touch()
    other = cli(trained, "export", "parts", tmp_path / "photos", "--force")
    assert "no export made it" in other.error
    assert "is a file; name a folder" in cli(trained, "export", "parts", __file__, "--force").error
    file = tmp_path / "bank.ckpt"
    file.write_bytes(b"mine")
    assert "--force replaces it" in cli(trained, "export", "parts", file).error
    assert file.read_bytes() == b"mine"
    assert cli(trained, "export", "nothing", tmp_path / "no").code == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bank.ckpt", "out", "photos"]


def _fail(folder: Path, error: Exception, *, force: bool = False) -> None:
    with new_folder(folder, force=force) as part:
        (part / "half.parquet").touch()
        raise error


def test_an_export_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    for force in (False, True):
        with pytest.raises(ZeroDivisionError):
            _fail(tmp_path / "out", ZeroDivisionError(), force=force)
        assert not list(tmp_path.iterdir())
    with new_folder(tmp_path / "out", force=False) as part:
        (part / "export.json").touch()
    with pytest.raises(UsageError, match="No space left"):
        _fail(tmp_path / "out", OSError(28, "No space left on device"), force=True)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "export.json"]


def test_without_pyarrow_the_extra_is_named(
    trained: Database, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [name for name in sys.modules if name.split(".")[0] == "pyarrow"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    result = cli(trained, "export", "parts", tmp_path / "out")
    assert result.code == 1
    assert "pip install 'pgdefect[interop]'" in result.error
    assert not list(tmp_path.iterdir())


def test_rows_come_in_blocks_and_from_one_instant(trained: Database) -> None:
    query = sql.SQL("SELECT image_id, split, attributes FROM defect.images ORDER BY image_id")
    with snapshot(trained) as connection:
        first = read_blocks(connection, query, block_rows=10)
        with trained.begin() as other:
            other.execute(text("DELETE FROM pgdefect.image WHERE split = 'test'"))
        blocks = list(first.blocks)
        assert [len(block[0]) for block in blocks] == [10, 10, 9]
        assert blocks[0][1:] == [["test"] * 10, ["{}"] * 10]
        assert first.num_rows == read_blocks(connection, query).num_rows == 29
        with pytest.raises(Exception, match="read-only"):
            connection.execute("DELETE FROM pgdefect.image")
    with snapshot(trained) as connection:
        assert read_blocks(connection, query).num_rows == 16


def test_fiftyone_finds_samples_labels_masks_and_embeddings(
    trained: Database, good: Cli, cli: Cli, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    good(trained, "export", "parts", folder, "--to", "fiftyone")
    # Without a version the importer takes the fields from the samples.
    assert "version" not in json.loads((folder / "metadata.json").read_text())
    samples = json.loads((folder / "samples.json").read_text())["samples"]
    assert len(samples) == 29
    sample = next(s for s in samples if s["filepath"].endswith("test/scratch/000.png"))
    assert sample["tags"] == ["test"]
    assert sample["ground_truth"] == {"_cls": "Classification", "label": "anomalous"}
    assert sample["defect_type"]["label"] == "scratch"
    assert sample["prediction"]["label"] == value(
        trained, "SELECT verdict FROM defect.images WHERE image_id = %s", sample["image_id"]
    )
    with Image.open(folder / sample["ground_truth_mask"]["mask_path"]) as mask:
        assert (mask.mode, mask.size, mask.getextrema()) == ("L", (128, 128), (0, 255))
    with Image.open(folder / sample["anomaly_map"]["map_path"]) as picture:
        heatmap = np.asarray(picture)
    assert heatmap.shape == (128, 128)
    # The worst patch's middle, drawn to the image's size: 255 is 2.5 thresholds.
    worst = min(255.0, sample["raw_score"] * 255 / (2.5 * sample["threshold"]))
    assert heatmap.max() == pytest.approx(worst, abs=0.25 * worst)
    content = zlib.decompress(b64decode(sample["embedding"]["$binary"]["base64"]))
    embedding = np.load(io.BytesIO(content), allow_pickle=False)
    assert (embedding.shape, embedding.dtype) == ((152,), np.float32)
    assert np.linalg.norm(embedding) == pytest.approx(1, abs=1e-2)
    training = next(s for s in samples if s["tags"] == ["train"])
    assert "prediction" not in training
    assert {path.name for path in (folder / "fields").iterdir()} == {
        "anomaly_map",
        "ground_truth_mask",
    }

    with trained.begin() as connection:
        connection.execute(
            text("UPDATE pgdefect.image SET mask_path = 'gone.png' WHERE path LIKE '%scratch/000%'")
        )
    result = cli(trained, "export", "parts", tmp_path / "other", "--to", "fiftyone")
    assert result.code == 1
    assert "gone.png" in result.err
    assert len(json.loads((tmp_path / "other/samples.json").read_text())["samples"]) == 29


def test_the_script_for_pandas_reads_what_there_is(trained: Database) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", CHECKOUT / "docs/read_with_pandas.py", trained.url],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "Images: 29 inspected: 13" in done.stdout
    assert "Image embeddings: 29 of 152 dimensions" in done.stdout
    assert "The two images most alike: /" in done.stdout
