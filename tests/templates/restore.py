"""Restore a template database from the dump beside this file."""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path

from sqlalchemy import text

from pgdefect.db.backup.restore import restore
from pgdefect.db.connection.engine import Database
from pgdefect.db.records.catalog import move_root
from tests.templates.graphs import with_weights

HERE = Path(__file__).parent
PARTS = "/parts"
"""The image root in the dumps, which have no folder of any machine."""
GRAPHS = ("extractor", "defect_space")
"""Tables with a column ``onnx`` and its checksum."""


def restore_template(database: Database, name: str, parts: Path) -> None:
    """Fill an empty database from a dump; `parts` is the folder with its images.

    The restoration upgrades: migrations and SQL files newer than the dump are applied.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{name}.dump")
        path.write_bytes(gzip.decompress((HERE / f"{name}.dump.gz").read_bytes()))
        restore(database, path, bundled_first=True)
    move_root(database, PARTS, str(parts))
    with database.begin() as connection:
        for table in GRAPHS:
            query = f"SELECT onnx, onnx_sha256 FROM pgdefect.{table}"
            for onnx, sha256 in connection.execute(text(query)).all():
                connection.execute(
                    text(f"UPDATE pgdefect.{table} SET onnx = :o WHERE onnx_sha256 = :s"),
                    {"o": with_weights(onnx, sha256), "s": sha256},
                )
