"""What the benchmarks share: images, a database, clocks, the machine's rates, tables."""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
MAGNETIC_TILE = ROOT.parent / "shared" / "data" / "magnetic_tile"
SIZE = (256, 256)
GRID = (32, 32)
POLY = "elpv solar cells (poly)"


@dataclass(frozen=True)
class Images:
    """A data set to measure on; records as `pgdefect ingest` reads them."""

    name: str
    dataset: Any

    def paths(self, split: str, label: str | None = None) -> list[str]:
        return [
            os.path.join(self.dataset.root, record.path)
            for record in self.dataset.records
            if record.split == split and label in (None, record.label)
        ]

    @property
    def normal_training(self) -> list[str]:
        return self.paths("train", "normal")

    def limited(self, *, train: int | None = None, test: int | None = None) -> Images:
        """The first `train` normal training images, and `test` of each label for testing."""
        from dataclasses import replace

        kept, seen = [], {"train": 0, "normal": 0, "anomalous": 0}
        for record in self.dataset.records:
            key = "train" if record.split == "train" else str(record.label)
            limit = train if key == "train" else test
            if seen.get(key, 0) < (len(self.dataset.records) if limit is None else limit):
                kept.append(record)
                seen[key] = seen.get(key, 0) + 1
        return Images(self.name, replace(self.dataset, records=tuple(kept)))


@dataclass
class Row:
    """One comparison. ratio: the peer's time over ours; floor_seconds: no program does
    the work in less, by the count of bytes or operations that `floor` states.
    """

    what: str
    against: str
    seconds: float
    peer_seconds: float
    target: float | None = None
    floor: str = ""
    floor_seconds: float | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        return self.peer_seconds / self.seconds

    def to_dict(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "ratio": self.ratio,
            "met": None if self.target is None else self.ratio >= self.target,
        }


@dataclass
class Report:
    """Rows of one benchmark on one set of images, and facts beside times."""

    name: str
    images: str
    rows: list[Row] = field(default_factory=list)
    checks: list[tuple[str, bool]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """Lines to print below the table."""

    def check(self, text: str, holds: bool) -> None:
        """A requirement that is not a ratio of times."""
        self.checks.append((text, holds))

    def to_dict(self) -> dict[str, Any]:
        return {
            "benchmark": self.name,
            "images": self.images,
            "rows": [row.to_dict() for row in self.rows],
            "checks": [{"requirement": text, "holds": bool(holds)} for text, holds in self.checks],
            "facts": self.facts,
            "notes": self.notes,
        }


@dataclass
class Context:
    """How a run was asked for, and what its benchmarks share."""

    quick: bool
    images: Images
    folder: Path
    repeat: int

    @cached_property
    def rates(self) -> Rates:
        return measure_rates()

    def say(self, message: str) -> None:
        print(f"  {message}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Rates:
    """What this machine reaches, in this run, on all cores."""

    flops: float
    bytes_read: float
    bytes_copied: float


def measure_rates() -> Rates:
    """FLOP/s of a float32 matrix product; bytes/s of a long read, and of a copy."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(2048, 512)).astype(np.float32)
    seconds = best(lambda: a @ a.T, 10)
    long = np.ones(1 << 26, dtype=np.float32)
    other = np.empty_like(long)
    reading = best(lambda: long.sum(dtype=np.float32), 5)
    copying = best(lambda: np.copyto(other, long), 5)
    return Rates(
        2 * len(a) ** 2 * a.shape[1] / seconds, long.nbytes / reading, long.nbytes / copying
    )


def best(call: Callable[[], Any], repeat: int) -> float:
    """Seconds of the fastest of `repeat` calls, after one that is not counted."""
    call()
    return min(timed(call)[0] for _ in range(repeat))


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def median_alternating(
    ours: Callable[[], Any], peer: Callable[[], Any], repeat: int
) -> tuple[float, float]:
    """Median seconds of both, measured in turns so that a busy moment meets both."""
    pairs = [(timed(ours)[0], timed(peer)[0]) for _ in range(repeat)]
    return statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs)


def image_sets(folder: Path | None, quick: bool) -> list[Images]:
    """The folder's images; without one, the solar cells and, where present, the tiles."""
    from pgdefect.usecases.demo import solar_cells
    from pgdefect.vision.images.dataset import scan

    if folder is not None:
        return [Images(folder.name, scan(folder))]
    sets = [
        Images("elpv solar cells (mono)", solar_cells("solar_mono")),
        Images(POLY, solar_cells("solar_poly")),
    ]
    if MAGNETIC_TILE.is_dir() and not quick:
        groups = MAGNETIC_TILE / "groups.csv"
        sets.append(
            Images(
                "magnetic tiles", scan(MAGNETIC_TILE, parts=groups if groups.is_file() else None)
            )
        )
    return sets


@contextmanager
def server() -> Iterator[Any]:
    """An embedded server of the run's own, on this disk, with its schema; gone afterwards."""
    from pgdefect.db.connection.engine import Database
    from pgdefect.db.schema.schema import upgrade
    from pgdefect.db.server.embedded import EmbeddedServer

    folder = Path(tempfile.mkdtemp(prefix="pgdefect-bench-"))
    folder.chmod(0o755)
    started = EmbeddedServer(folder / "data")
    try:
        started.start()
        database = Database(started.url())
        upgrade(database)
        yield database
        database.dispose()
    finally:
        started.stop()
        shutil.rmtree(folder, ignore_errors=True)


@cache
def extractor_for(name: str, folder: Path, size: tuple[int, int] = SIZE) -> tuple[Any, Any]:
    """Anomalib's network and our exported extractor, for a backbone.

    One whose weights no installed package brings gets random ones: they cost the same time.
    """
    import torch
    from timm import create_model

    from pgdefect.vision.images.preprocess import Preprocessing
    from pgdefect.vision.networks.backbone import find_backbone
    from pgdefect.vision.networks.extractor import Extractor
    from pgdefect.vision.patchcore import patchcore

    backbone = find_backbone(name)
    weights = None
    if not backbone.available_offline:
        torch.manual_seed(0)
        weights = folder / f"{name}.pth"
        torch.save(create_model(backbone.timm_name, pretrained=False).state_dict(), weights)
    preprocessing = Preprocessing(image_size=size, mean=backbone.mean, std=backbone.std)
    embedder = patchcore.build_embedder(backbone, backbone.layers, preprocessing, weights)
    return embedder, Extractor(embedder.export())


def prepared(paths: Sequence[str], preprocessing: Any) -> Any:
    """Images as network input `(n, 3, height, width)`."""
    from pgdefect.vision.images.image import read_image

    return np.stack([preprocessing.apply(read_image(path)[1]) for path in paths])


def machine() -> dict[str, Any]:
    """What the run was made on; no figure means anything without it."""
    packages = ("pgdefect", "anomalib", "torch", "openvino", "numpy")
    return {
        "cpus": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "processor": _processor(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), "")


def print_report(report: Report) -> None:
    print(f"\n{report.name}: {report.images}\n")
    header = (
        f"{'':52}{'seconds':>10}{'peer':>10}{'ratio':>8}{'at least':>10}{'floor':>10}{'x floor':>9}"
    )
    if report.rows:
        print(header + "\n" + "-" * len(header))
    for row in report.rows:
        target = "-" if row.target is None else f"{row.target:g}"
        floor = "-" if row.floor_seconds is None else spelled_seconds(row.floor_seconds)
        over = "-" if row.floor_seconds is None else f"{row.seconds / row.floor_seconds:.1f}"
        missed = row.target is not None and row.ratio < row.target
        print(
            f"{row.what:52}{spelled_seconds(row.seconds):>10}{spelled_seconds(row.peer_seconds):>10}"
            f"{row.ratio:8.1f}{target:>10}{floor:>10}{over:>9}{'  missed' if missed else ''}"
        )
    print()
    for row in report.rows:
        print(f"{row.what}\n    against {row.against}")
        for line in ([f"floor: {row.floor}"] if row.floor else []) + row.notes:
            print(f"    {line}")
    for line in report.notes:
        print(line)
    for text, holds in report.checks:
        print(f"{'holds ' if holds else 'MISSED'}  {text}")


def write_results(name: str, reports: Sequence[Report], quick: bool, folder: Path) -> Path:
    """Keep a benchmark's figures as JSON; a quick run's apart, for they mean little."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}{'.quick' if quick else ''}.json"
    content = {"machine": machine(), "quick": quick, "reports": [r.to_dict() for r in reports]}
    path.write_text(json.dumps(content, indent=2, default=float) + "\n")
    return path


def spelled_seconds(value: float) -> str:
    """To three digits, in ms below a second."""
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"
