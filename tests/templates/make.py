"""Make the dumps beside this file: what most tests start from, trained as a user would.

    python -m tests.templates.make

Run it after a change of what a training stores: other defaults, other scores, other tables whose
rows no migration fills. Nothing else asks for it: migrations and SQL files newer than a dump are
applied when it is restored. ``test_templates.py`` (marked ``train``) trains anew and fails where a
dump says something else. Needs the extra train and one to two minutes. The dumps hold no weights
(`graphs.py`) and no folder of any machine.
"""

from __future__ import annotations

import gzip
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import text

from pgdefect.core.config import Settings
from pgdefect.db.backup.backup import backup
from pgdefect.db.backup.pg_dump_archive import open_archive
from pgdefect.db.connection.engine import Database
from pgdefect.db.records.catalog import move_root
from pgdefect.db.schema.schema import upgrade
from pgdefect.db.server.embedded import EmbeddedServer
from pgdefect.usecases.ingest import ingest
from pgdefect.usecases.inspect.inspect import inspect
from pgdefect.usecases.train.options import TrainOptions
from pgdefect.usecases.train.train import train
from tests.templates.graphs import without_weights
from tests.templates.parts import TINY, draw_parts
from tests.templates.restore import GRAPHS, HERE, PARTS

TRAINING = TrainOptions(image_size=TINY)


def train_parts(database: Database, settings: Settings, parts: Path) -> None:
    """Train category ``parts`` and inspect its test images, in an upgraded database."""
    ingest(database, parts, "parts")
    train(database, settings, "parts", TRAINING)
    inspect(database, settings, "parts", split="test")


def make() -> Path:
    """Write the dump of the trained category; returns it."""
    with _server() as (server, folder):
        parts = draw_parts(folder / "parts")
        settings = Settings(cache_dir=folder / "cache")
        database = Database(server.url())
        upgrade(database)
        train_parts(database, settings, parts)
        path = _write(database, "trained", folder, parts)
        database.dispose()
    return path


def _write(database: Database, name: str, folder: Path, parts: Path) -> Path:
    move_root(database, str(parts), PARTS)
    with database.begin() as connection:
        for table in GRAPHS:
            query = f"SELECT onnx, onnx_sha256 FROM pgdefect.{table}"
            for onnx, sha256 in connection.execute(text(query)).all():
                connection.execute(
                    text(f"UPDATE pgdefect.{table} SET onnx = :o WHERE onnx_sha256 = :s"),
                    {"o": without_weights(onnx), "s": sha256},
                )
    written = folder / f"{name}.dump"
    backup(database, written, bundled_first=True)
    with open_archive(written, bundled_first=True).data() as stream:
        if found := re.search(rb"/(work|home|root|tmp|usr)/\S*", stream.read()):
            raise SystemExit(f"the dump names a folder of this machine: {found[0].decode()}")
    target = HERE / f"{name}.dump.gz"
    target.write_bytes(gzip.compress(written.read_bytes(), 9, mtime=0))
    return target


@contextmanager
def _server() -> Iterator[tuple[EmbeddedServer, Path]]:
    folder = Path(tempfile.mkdtemp(prefix="pgdefect-template-", dir="/tmp"))
    folder.chmod(0o755)
    server = EmbeddedServer(folder / "data")
    try:
        server.start()
        yield server, folder
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    path = make()
    print(f"{path.name}: {path.stat().st_size:,} bytes")
