"""A category as a dataset that FiftyOne opens: samples, labels, masks, heatmaps, embeddings.

The folder is what FiftyOne calls ``fiftyone.types.FiftyOneDataset``, in the form without a
version in ``metadata.json``, whose fields its importer infers from the samples
(``LegacyFiftyOneDatasetImporter`` in ``fiftyone/utils/data/importers.py``). Images stay where
they are and are named by their path; masks and heatmaps lie in ``fields/<field>``, and paths
there are relative to the folder. An array is what ``fiftyone.core.utils.serialize_numpy_array``
makes of it: a .npy without pickles, by zlib, in base64.
"""

from __future__ import annotations

import io
import zlib
from base64 import b64encode
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
from psycopg import sql

from pgdefect.core.errors import ImageError
from pgdefect.core.progress import Progress, silent
from pgdefect.db.connection.engine import Database
from pgdefect.db.connection.read_blocks import read_blocks, snapshot
from pgdefect.db.records.catalog import category_id as find_category
from pgdefect.pictures.render import DEFAULT_VMAX, save_png
from pgdefect.usecases.exchange.export import ExportReport, Written
from pgdefect.usecases.exchange.export_folder import as_json, new_folder, write_manifest
from pgdefect.vision.images.masks import load_mask
from pgdefect.vision.images.preprocess import Preprocessing

BLOCK_IMAGES = 64

_SAMPLES = """
SELECT v.image_id, v.path, v.height, v.width, v.split, v.label, v.defect_type, v.part,
       v.verdict, v.raw_score, v.normalized_score, v.threshold, v.detector_id, v.inspection_id,
       r.path || '/' || i.mask_path AS mask_path, s.anomaly_map,
       x.preprocessing::text AS preprocessing, m.embedding::real[] AS embedding
FROM defect.images v
JOIN pgdefect.image i ON i.id = v.image_id
JOIN pgdefect.image_root r ON r.id = i.root_id
LEFT JOIN pgdefect.inspection s ON s.id = v.inspection_id
LEFT JOIN pgdefect.detector d ON d.id = s.detector_id
LEFT JOIN pgdefect.extractor x ON x.id = d.extractor_id
LEFT JOIN pgdefect.image_embedding m ON m.image_id = v.image_id AND m.extractor_id = {extractor}
WHERE v.category = {category} AND v.retired_at IS NULL
ORDER BY v.image_id"""

_EXTRACTOR = """
SELECT d.extractor_id FROM pgdefect.detector d WHERE d.category_id = %s AND d.active
ORDER BY pgdefect.kind_preference(d.kind) LIMIT 1"""

_REGIONS = """
SELECT t.image_id, t.x, t.y, t.width, t.height, t.peak_score, t.mean_score
FROM pgdefect.defect_region t JOIN unnest(%s::bigint[], %s::bigint[]) u(image_id, detector_id)
    ON t.image_id = u.image_id AND t.detector_id = u.detector_id
ORDER BY t.image_id, t.rank"""


def export_fiftyone(
    database: Database,
    category: str,
    path: Path,
    *,
    force: bool = False,
    progress: Progress = silent,
) -> ExportReport:
    """Write a category's images as a FiftyOneDataset.

    Each sample has its split as a tag; ``ground_truth``, ``defect_type`` and
    ``prediction`` (Classification); ``ground_truth_mask``, 255 where defective
    (Segmentation); ``anomaly_map``, 255 at 2.5 thresholds (Heatmap), both at the image's size;
    ``regions`` (Detections) where they are stored; ``embedding``, of the active detector's
    extractor; scores, threshold and our ids as plain fields.

    Raises:
        UnknownCategory; UsageError: `path` is taken, or cannot be written.
    """
    with database.connect() as checked:
        category_id = find_category(checked, category)
    failed: list[tuple[str, str]] = []
    with new_folder(path, force=force) as folder, snapshot(database) as connection:
        extractor = connection.execute(_EXTRACTOR, [category_id]).fetchone()
        query = sql.SQL(_SAMPLES).format(
            category=sql.Literal(category), extractor=sql.Literal(extractor[0] if extractor else 0)
        )
        result = read_blocks(connection, query, block_rows=BLOCK_IMAGES)
        names = [column.name for column in result.columns]
        done = 0
        with (folder / "samples.json").open("w", encoding="utf-8") as file:
            file.write('{"samples": [')
            for block in result.blocks:
                rows = [dict(zip(names, row, strict=True)) for row in zip(*block, strict=True)]
                regions = _regions(connection, rows)
                for row in rows:
                    sample = _sample(folder, row, regions.get(row["image_id"], []), failed)
                    file.write((",\n" if done else "\n") + as_json(sample))
                    done += 1
                    progress("write", done, result.num_rows)
            file.write("\n]}\n")
        info = {"category": category, "anomaly_map": f"255 is {DEFAULT_VMAX:g} thresholds"}
        metadata = {"name": category, "media_type": "image", "info": info}
        (folder / "metadata.json").write_text(as_json(metadata), encoding="utf-8")
        write_manifest(folder, {"format": "fiftyone", "category": category, "samples": done})
    written = Written("samples", ("samples.json",), done, None)
    return ExportReport(category, path, "fiftyone", (written,), tuple(failed))


def _regions(
    connection: psycopg.Connection[Any], rows: list[dict[str, Any]]
) -> dict[int, list[tuple[Any, ...]]]:
    """The stored regions of a block's newest inspections, by image."""
    judged = [(row["image_id"], row["detector_id"]) for row in rows if row["inspection_id"]]
    found: dict[int, list[tuple[Any, ...]]] = {}
    ids, detectors = [pair[0] for pair in judged], [pair[1] for pair in judged]
    for image_id, *region in connection.execute(_REGIONS, [ids, detectors]):
        found.setdefault(image_id, []).append(tuple(region))
    return found


def _sample(
    folder: Path,
    row: Mapping[str, Any],
    regions: list[tuple[Any, ...]],
    failed: list[tuple[str, str]],
) -> dict[str, Any]:
    size = (row["height"], row["width"])
    labels: dict[str, Any] = {}
    if row["label"] is not None:
        labels["ground_truth"] = {"_cls": "Classification", "label": row["label"]}
        if row["defect_type"] is not None:
            labels["defect_type"] = {"_cls": "Classification", "label": row["defect_type"]}
    if row["mask_path"] is not None:
        try:
            mask = load_mask(row["mask_path"], size, image=row["path"]).astype(np.uint8) * 255
        except ImageError as error:
            failed.append((row["mask_path"], str(error)))
        else:
            path = f"fields/ground_truth_mask/{row['image_id']}.png"
            save_png(mask, folder / path)
            labels["ground_truth_mask"] = {"_cls": "Segmentation", "mask_path": path}
    if row["inspection_id"] is not None:
        # Without a confidence: a score is a distance, and says little of the label "normal".
        labels["prediction"] = {"_cls": "Classification", "label": row["verdict"]}
        path = f"fields/anomaly_map/{row['image_id']}.png"
        save_png(_heatmap(row, size), folder / path)
        labels["anomaly_map"] = {"_cls": "Heatmap", "map_path": path, "range": [0.0, 255.0]}
    if regions:
        labels["regions"] = {"_cls": "Detections", "detections": list(_detections(regions, size))}
    if row["embedding"] is not None:
        labels["embedding"] = _array(np.array(row["embedding"], dtype=np.float32))
    numbers = ("raw_score", "normalized_score", "threshold", "detector_id", "part")
    return {
        "filepath": row["path"],
        "tags": [row["split"]],
        "_media_type": "image",
        "image_id": row["image_id"],
        **{name: row[name] for name in numbers if row[name] is not None},
        **labels,
    }


def _heatmap(row: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray[Any, Any]:
    import json

    preprocessing = Preprocessing.from_dict(json.loads(row["preprocessing"]))
    scores = preprocessing.map_to_original(np.array(row["anomaly_map"], dtype=np.float32), size)
    scaled = np.rint(scores * (255.0 / (DEFAULT_VMAX * row["threshold"])))
    heatmap: np.ndarray[Any, Any] = scaled.clip(0, 255).astype(np.uint8)
    return heatmap


def _detections(regions: list[tuple[Any, ...]], size: tuple[int, int]) -> Iterator[dict[str, Any]]:
    height, width = size
    for x, y, box_width, box_height, peak, mean in regions:
        yield {
            "_cls": "Detection",
            "label": "anomalous",
            "bounding_box": [x / width, y / height, box_width / width, box_height / height],
            "peak_score": peak,
            "mean_score": mean,
        }


def _array(values: np.ndarray[Any, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    np.save(file, values, allow_pickle=False)
    content = b64encode(zlib.compress(file.getvalue())).decode("ascii")
    return {"$binary": {"base64": content, "subType": "00"}}
