"""What the database holds of a category, as Parquet files or NumPy arrays.

Rows and vectors leave in blocks and from one snapshot, so that a bank larger than memory can
be exported while stations keep inspecting. Nothing written is a pickle.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg import sql

from pgdefect import __version__
from pgdefect.core.errors import MissingExtra
from pgdefect.core.progress import Progress, silent
from pgdefect.db.connection.engine import Database
from pgdefect.db.connection.read_blocks import Column, Result, has_rows, read_blocks, snapshot
from pgdefect.db.records.catalog import category_id as find_category
from pgdefect.usecases.exchange.export_folder import Notes, as_json, new_folder, write_manifest

METADATA_KEY = b"pgdefect"
"""Of a Parquet file's key-value metadata: JSON on what its vectors are."""

_EXTRACTOR = """
SELECT e.id, e.fingerprint, e.backbone, e.layers, e.preprocessing, e.embedding_dim
FROM pgdefect.extractor e"""


@dataclass(frozen=True)
class Table:
    """A table to export. about: what its rows are; for vectors extractor, metric, transform.
    fixed: where no row of it ever changes, what tells it from all others of its name.
    """

    name: str
    query: sql.Composed
    about: Mapping[str, Any]
    fixed: str = ""


@dataclass(frozen=True)
class Written:
    """What became of a table: its name, the files' places, rows, and dimension of vectors."""

    table: str
    files: tuple[str, ...]
    rows: int
    dim: int | None


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote; failed: masks that could not be read, whose images have none;
    resumed: tables that an interrupted export had written.
    """

    category: str
    path: Path
    format: str
    tables: tuple[Written, ...]
    failed: tuple[tuple[str, str], ...] = ()
    resumed: tuple[str, ...] = ()


def export_parquet(
    database: Database,
    category: str,
    path: Path,
    *,
    force: bool = False,
    progress: Progress = silent,
) -> ExportReport:
    """Write one Parquet file a table: images, inspections, and vectors with where they belong.

    Vectors are ``fixed_size_list<float16 | float32>``, as they are stored; the key
    ``pgdefect`` of a file's metadata says by which extractor, metric and transform.

    Raises:
        UnknownCategory; MissingExtra: pyarrow is not installed;
        UsageError: `path` is taken, or cannot be written.
    """
    _require("pyarrow.parquet")

    def write(folder: Path, table: Table, result: Result, tick: Callable[[int], None]) -> Written:
        name = f"{table.name}.parquet"
        _write_parquet(folder / name, table, result, tick)
        return Written(table.name, (name,), result.num_rows, _dim(result))

    return _export(database, category, path, "parquet", force, progress, write)


def export_numpy(
    database: Database,
    category: str,
    path: Path,
    *,
    force: bool = False,
    progress: Progress = silent,
) -> ExportReport:
    """Write vectors and the numbers beside them as .npy, one file a column, rows as CSV.

    ``memory_bank-1/embedding.npy`` is `(num_vectors, embedding_dim)`, and element n of
    ``memory_bank-1/image_id.npy`` the image that vector n came from, -1 where that is not
    known; NULL in a column of floats is NaN. ``images.csv`` names the images.

    Raises:
        UnknownCategory; UsageError: `path` is taken, or cannot be written.
    """

    def write(folder: Path, table: Table, result: Result, tick: Callable[[int], None]) -> Written:
        if _dim(result) is None:
            name = f"{table.name}.csv"
            _write_csv(folder / name, result, tick)
            return Written(table.name, (name,), result.num_rows, None)
        (folder / table.name).mkdir()
        files = _write_arrays(folder / table.name, result, tick)
        names = tuple(f"{table.name}/{file}" for file in files)
        return Written(table.name, names, result.num_rows, _dim(result))

    return _export(database, category, path, "numpy", force, progress, write)


def _export(
    database: Database,
    category: str,
    path: Path,
    format_name: str,
    force: bool,
    progress: Progress,
    write: Callable[[Path, Table, Result, Callable[[int], None]], Written],
) -> ExportReport:
    with database.connect() as checked:
        category_id = find_category(checked, category)
    key = _hash([database.safe_url, category, format_name, __version__])
    with new_folder(path, force=force, key=key) as folder, snapshot(database) as connection:
        notes, resumed = Notes(folder), []
        tables = list(_tables(connection, category_id, category))
        results = [read_blocks(connection, table.query) for table in tables]
        total, done = sum(result.num_rows for result in results), 0
        written = []
        for table, result in zip(tables, results, strict=True):
            before = done

            def tick(rows: int, before: int = before) -> None:
                progress("write", before + rows, total)

            about = _hash([table.fixed, table.about])
            if table.fixed and (files := notes.files(table.name, about)):
                resumed.append(table.name)
                written.append(Written(table.name, tuple(files), result.num_rows, _dim(result)))
            else:
                written.append(write(folder, table, result, tick))
                if table.fixed:
                    notes.add(table.name, about, written[-1].files)
            done += result.num_rows
        write_manifest(
            folder,
            {
                "format": format_name,
                "category": category,
                "tables": {
                    w.table: {"files": w.files, "rows": w.rows, "dim": w.dim, **t.about}
                    for t, w in zip(tables, written, strict=True)
                },
            },
        )
    return ExportReport(category, path, format_name, tuple(written), resumed=tuple(resumed))


def _hash(value: Any) -> str:
    return hashlib.sha256(as_json(value).encode()).hexdigest()


def _tables(
    connection: psycopg.Connection[Any], category_id: int, category: str
) -> Iterator[Table]:
    """The tables of a category, views' rows first, then every kind of vector there is."""
    name, key = sql.Literal(category), sql.Literal(category_id)
    yield Table(
        "images",
        sql.SQL("SELECT v.* FROM defect.images v WHERE v.category = {} ORDER BY v.image_id").format(
            name
        ),
        {"rows_are": "images, with the newest inspection of each (view defect.images)"},
    )
    yield Table(
        "inspections",
        sql.SQL(
            "SELECT v.*, s.anomaly_map FROM defect.inspections v "
            "JOIN pgdefect.inspection s ON s.id = v.inspection_id "
            "WHERE v.category = {} ORDER BY v.inspection_id"
        ).format(name),
        {"rows_are": "inspections, anomaly_map in patch scores, row by row"},
    )
    yield from _banks(connection, key)
    extractors = connection.execute(sql.SQL(_EXTRACTOR + " ORDER BY e.id")).fetchall()
    for table, what in (
        ("image_embedding", "images, one vector each"),
        ("defect_embedding", "inspected images, one vector each of their anomalous patches"),
        ("defect_region", "anomalous regions of inspected images, boxes in pixels"),
    ):
        for row in extractors:
            query = sql.SQL(
                "SELECT t.* FROM pgdefect.{} t JOIN pgdefect.image i ON i.id = t.image_id "
                "WHERE t.extractor_id = {} AND i.category_id = {} AND i.split <> 'simulated' "
                "ORDER BY t.image_id"
            ).format(sql.Identifier(table), sql.Literal(row[0]), key)
            if has_rows(connection, query):
                about = {"rows_are": what, "extractor": _extractor(row), "metric": "cosine"}
                yield Table(f"{table}-{row[0]}", query, about)


def _banks(connection: psycopg.Connection[Any], category_key: sql.Literal) -> Iterator[Table]:
    rows = connection.execute(
        sql.SQL(
            "SELECT b.id, b.metric, b.precision, b.transform, b.transform_mean, "
            "b.transform_components, b.transform_constant, d.threshold, d.version, "
            "b.num_neighbors, b.worst_share, d.created_at, e.* FROM pgdefect.memory_bank b "
            "JOIN pgdefect.detector d ON d.id = b.id "
            "JOIN ({}) e ON e.id = d.extractor_id "
            "WHERE d.category_id = {} AND d.active ORDER BY b.id"
        ).format(sql.SQL(_EXTRACTOR), category_key)
    ).fetchall()
    for bank, metric, precision, kind, mean, components, constant, *more in rows:
        threshold, version, num_neighbors, worst_share, stored, *extractor = more
        # Vectors of a bank are never changed, but a restored database may give its number again.
        fixed = f"{bank} {stored.astimezone(UTC).isoformat()}"
        # A vector rounded to half precision is kept as `vector` for its index, at twice the size.
        embedding = sql.SQL("embedding::halfvec" if precision == "half" else "embedding")
        yield Table(
            f"memory_bank-{bank}",
            sql.SQL(
                "SELECT bank_id, position, nullif(image_id, 0) AS image_id, "
                'CASE WHEN image_id <> 0 THEN "row" END AS "row", '
                "CASE WHEN image_id <> 0 THEN col END AS col, {} AS embedding "
                "FROM pgdefect.memory_bank_patch WHERE bank_id = {} ORDER BY position"
            ).format(embedding, sql.Literal(bank)),
            {
                "rows_are": "normal patches, with the image and grid cell each came from",
                "extractor": _extractor(extractor),
                "metric": metric,
                "transform": {
                    "kind": kind,
                    "mean": mean,
                    "components": components,
                    "constant": constant,
                },
                "detector_version": version,
                "threshold": threshold,
                "num_neighbors": num_neighbors,
                "worst_share": worst_share,
            },
            fixed,
        )
        raw = sql.SQL(
            "SELECT bank_id, position, embedding FROM pgdefect.memory_bank_raw "
            "WHERE bank_id = {} ORDER BY position"
        ).format(sql.Literal(bank))
        if has_rows(connection, raw):
            about = {
                "rows_are": "the bank's patches before the transform",
                "metric": "l2",
                "extractor": _extractor(extractor),
            }
            yield Table(f"memory_bank_raw-{bank}", raw, about, fixed)


def _extractor(row: Any) -> dict[str, Any]:
    names = ("id", "fingerprint", "backbone", "layers", "preprocessing", "embedding_dim")
    return dict(zip(names, row, strict=True))


def _dim(result: Result) -> int | None:
    """The dimension of a table's vectors; None where it has none."""
    dims = [column.dim for column in result.columns if column.kind in ("vector", "halfvec")]
    return dims[0] if dims else None


def _require(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtra("exporting to Parquet", module.split(".")[0], "interop") from error


def _write_parquet(path: Path, table: Table, result: Result, tick: Callable[[int], None]) -> None:
    arrow, parquet = _require("pyarrow"), _require("pyarrow.parquet")
    about = {**table.about, "dim": _dim(result)}
    schema = arrow.schema(
        [arrow.field(column.name, _arrow_type(arrow, column)) for column in result.columns],
        metadata={METADATA_KEY: as_json(about).encode()},
    )
    done = 0
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        for block in result.blocks:
            arrays = [
                arrow.FixedSizeListArray.from_arrays(arrow.array(values.ravel()), column.dim)
                if isinstance(values, np.ndarray)
                else arrow.array(values, type=field.type)
                for values, column, field in zip(block, result.columns, schema, strict=True)
            ]
            writer.write_batch(arrow.RecordBatch.from_arrays(arrays, schema=schema))
            done += len(block[0])
            tick(done)


def _arrow_type(arrow: Any, column: Column) -> Any:
    match column.kind:
        case "int16" | "int32" | "int64" | "float32" | "float64":
            return getattr(arrow, column.kind)()
        case "bool":
            return arrow.bool_()
        case "time":
            return arrow.timestamp("us", tz="UTC")
        case "texts":
            return arrow.list_(arrow.string())
        case "matrix":
            return arrow.list_(arrow.list_(arrow.float32()))
        case "vector" | "halfvec":
            element = arrow.float32() if column.kind == "vector" else arrow.float16()
            return arrow.list_(element, column.dim)
    return arrow.string()


def _write_arrays(folder: Path, result: Result, tick: Callable[[int], None]) -> list[str]:
    """One .npy a column of numbers: a header with the number of rows, then block on block."""
    types = {"vector": "float32", "halfvec": "float16"}
    kept = {
        n: np.dtype(types.get(column.kind, column.kind))
        for n, column in enumerate(result.columns)
        if column.kind.startswith(("int", "float", "bool", "vector", "halfvec"))
    }
    names = [f"{result.columns[n].name}.npy" for n in kept]
    with ExitStack() as stack:
        files = [stack.enter_context((folder / name).open("wb")) for name in names]
        for (n, dtype), file in zip(kept.items(), files, strict=True):
            dim = result.columns[n].dim
            shape = (result.num_rows, dim) if dim else (result.num_rows,)
            descr = np.lib.format.dtype_to_descr(dtype)
            header = {"descr": descr, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
        done = 0
        for block in result.blocks:
            for (n, dtype), file in zip(kept.items(), files, strict=True):
                file.write(_as_array(block[n], dtype).tobytes())
            done += len(block[0])
            tick(done)
    return names


def _as_array(values: list[Any] | NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    if isinstance(values, np.ndarray):
        return values
    null = np.nan if dtype.kind == "f" else -1
    return np.array([null if value is None else value for value in values], dtype=dtype)


def _write_csv(path: Path, result: Result, tick: Callable[[int], None]) -> None:
    import csv

    kept = [n for n, column in enumerate(result.columns) if column.kind not in ("matrix", "texts")]
    done = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([result.columns[n].name for n in kept])
        for block in result.blocks:
            writer.writerows(zip(*(block[n] for n in kept), strict=True))
            done += len(block[0])
            tick(done)
