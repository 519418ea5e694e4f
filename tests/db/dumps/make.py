"""Make the dumps beside this file: a database of each schema version, by the code of its time.

    python tests/db/dumps/make.py 0001 0002 …

Each version's code is checked out from git and run as a user would: ingest, train, inspect, and
what else it had. `pgdefect db backup` of today then writes the file: it takes any version. The
network is a tiny one of timm's with weights of few distinct values, so that a dump stays below
300 KiB. Needs the extras train and evaluate, and the right to make `PHOTOS` and `SIMULATED` at the
top of the file system, since the rows name folders; both are removed again.

A release asks for a dump of its newest migration: add a commit with it to `MADE_BY` and run this.
"""

from __future__ import annotations

import gzip
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[2]
PHOTOS = "/photos"
SIMULATED = "/simulated"
MADE_BY = {
    "0001": "161d862",
    # 0002 and 0003 came with one commit: rows of the code before it, under migration 0002 alone.
    "0002": "161d862",
    "0003": "bd511f1",
    "0004": "03c910c",
    "0005": "8831c94",
    # 0006 to 0009 are of one release.
    "0009": "f9e3725",
}
"""The last commit before the next migration."""
BACKBONE, LAYERS = "test_efficientnet", "blocks.2"
TRAIN = f"train parts --image-size 64 --backbone {BACKBONE} --layers {LAYERS} --weights {{weights}}"
COMMANDS = [
    f"ingest {PHOTOS} --category parts",
    f"{TRAIN} --coreset-ratio 0.1 --metric l2 --transform none --precision single",
    "inspect --category parts --split test",
    f"{TRAIN} --coreset-ratio 0.05",
    "inspect --category parts --split test",
]
MORE = {
    "0003": [
        "threshold parts --false-reject-rate 0.2",
        "evaluate parts",
        f"simulate parts --count 4 --output {SIMULATED}",
    ],
    "0004": [
        "review test/scratch/000.png --label anomalous --defect-type scratch --note 'a deep one'",
        "review test/good/001.png --label anomalous --defect-type stain",
        f"inspect {PHOTOS}/test/scratch/000.png --category parts --keep-patches",
        "recall-check parts --fix",
    ],
    "0005": [
        f"inspect {PHOTOS}/test/good --category parts --event-key monday --station north",
        f"inspect {PHOTOS}/test/good --category parts --event-key tuesday --station north",
        "threshold parts --false-reject-rate 0.3 --rejudge",
    ],
    "0009": [
        "review test/good/002.png --label anomalous --defect-type stain",
        "review test/good/002.png --withdraw",
    ],
}
"""What a version and those after it had besides."""


def draw_photos(folder: Path) -> None:
    """The photographs that the dumps tell of: 12 to learn from, 9 to test."""
    from tests.synthetic import write_dataset

    write_dataset(folder, num_train=12, num_test_normal=3, num_per_defect=2, seed=4, size=(64, 64))


def make(version: str) -> Path:
    """Write one version's dump."""
    from pgdefect.db.backup.backup import backup
    from pgdefect.db.connection.engine import Database
    from pgdefect.db.server.embedded import EmbeddedServer

    target = HERE / f"{version}.dump.gz"
    with _checkout(MADE_BY[version]) as code, _place() as place:
        server = EmbeddedServer(place / "data")
        weights = place / "tiny.pth"
        _write_weights(weights)
        more = [line for since, lines in MORE.items() if version >= since for line in lines]
        try:
            for line in COMMANDS + more:
                _pgdefect(code, place, shlex.split(line.format(weights=weights)))
            database = Database(server.url())
            if version == "0002":
                _migrate(database, version)
            report = backup(database, place / "dump", bundled_first=True)
            assert report.revision == version
            # Its table of contents, with all functions, is not compressed; without the time.
            content = (place / "dump").read_bytes()
            target.write_bytes(gzip.compress(content, 9, mtime=0))
            database.dispose()
        finally:
            server.stop()
    return target


def _pgdefect(code: Path, place: Path, words: list[str]) -> None:
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("PGDEFECT_", "PG"))},
        "PYTHONPATH": str(code / "src"),
        "PGDEFECT_DATA_DIR": str(place / "data"),
        "PGDEFECT_CACHE_DIR": str(place / "cache"),
    }
    program = "from pgdefect.cli.main import main; main()"
    print("+ pgdefect", *words, flush=True)
    subprocess.run([sys.executable, "-c", program, *words], env=environment, check=True)


def _migrate(database: object, version: str) -> None:
    """Today's migrations up to one, without the SQL files."""
    from alembic import command

    from pgdefect.db.schema.schema import _alembic_config

    config = _alembic_config()
    with database.begin() as connection:  # type: ignore[attr-defined]
        config.attributes["connection"] = connection
        command.upgrade(config, version)


def _write_weights(path: Path) -> None:
    """Weights of three values a tensor, most of them 0, which compress well."""
    import timm
    import torch

    torch.manual_seed(0)
    state = timm.create_model(BACKBONE, pretrained=False).state_dict()
    for name, values in state.items():
        if name.endswith("weight") and values.dim() > 1:
            spread = values.std()
            state[name] = (values / (2.5 * spread)).round().clamp(-1, 1) * 2.5 * spread
    torch.save(state, path)


@contextmanager
def _checkout(commit: str) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="pgdefect-code-", dir="/tmp"))
    git = ["git", "-C", str(CHECKOUT), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(folder), commit], check=True)
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


@contextmanager
def _place() -> Iterator[Path]:
    """A place for the server, and the photographs where the rows will say they are."""
    for folder in (PHOTOS, SIMULATED):
        if os.path.lexists(folder):
            raise SystemExit(f"{folder} exists; this would write there")
    place = Path(tempfile.mkdtemp(prefix="pgdefect-dump-", dir="/tmp"))
    place.chmod(0o755)
    try:
        draw_photos(Path(PHOTOS))
        yield place
    finally:
        for folder in (PHOTOS, SIMULATED, str(place)):
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        path = make(name)
        print(f"{path.name}: {path.stat().st_size:,} bytes")
