"""Training one category, in a process of its own so that its peak memory is its own."""

from __future__ import annotations

import csv
import json
import resource
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, Context, Images, Report, Row, server, timed

CATEGORY = "bench"
NUM_IMAGES = 696
LIMIT_SECONDS, LIMIT_BYTES = 240.0, 3e9
LITE0_FLOPS = 0.95e9
"""Of the layers up to blocks.4 at 256x256, counted by torch's FlopCounterMode."""


def measure(context: Context) -> Report:
    from pgdefect.usecases.ingest import ingest_dataset

    images = _enough(context.images).limited(train=24 if context.quick else NUM_IMAGES, test=0)
    with server() as database:
        ingest_dataset(database, images.dataset, CATEGORY)
        count = len(images.normal_training)
        context.say(f"training on {count} images")
        seconds, done = timed(
            lambda: subprocess.run(
                [sys.executable, "-m", "benchmarks.bench_train", database.url, str(context.folder)],
                cwd=ROOT,
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    kept = result["training_images"]
    patches = kept * 1024
    picking = 2 * patches * result["bank_vectors"] * result["embedding_dim"]
    flops = count * LITE0_FLOPS + picking
    report = Report("train", f"{count} {images.name}, {result['bank_vectors']:,} vectors picked")
    report.rows.append(
        Row(
            f"train {count} images, 10 %",
            f"a limit of {LIMIT_SECONDS:.0f} s, start of the process included",
            seconds,
            LIMIT_SECONDS,
            1.0,
            f"network {count * LITE0_FLOPS / 1e9:.0f} and all patches times all picks "
            f"{picking / 1e9:,.0f} GFLOP at {context.rates.flops / 1e9:.0f} GFLOP/s",
            flops / context.rates.flops,
            [
                f"{kept} in the bank, {result['held_out_images']} set the threshold; by stage: "
                + ", ".join(f"{name} {value:.1f} s" for name, value in result["seconds"].items())
            ],
        )
    )
    report.check(
        f"peak resident memory {result['peak_bytes'] / 1e9:.2f} GB, of {LIMIT_BYTES / 1e9:.0f} GB "
        "(the training process; pages of its scratch files included)",
        result["peak_bytes"] < LIMIT_BYTES,
    )
    report.facts = result
    return report


def _enough(images: Images) -> Images:
    """The images; of the solar cells all that are surely normal, both kinds, to have enough."""
    from pgdefect.usecases.demo import PACKAGE
    from pgdefect.vision.images.dataset import ImageRecord

    root = Path(images.dataset.root)
    if len(images.normal_training) >= NUM_IMAGES or root.parent.name != PACKAGE:
        return images
    with open(root / "labels.csv", encoding="utf-8") as file:
        rows = [row for row in csv.reader(file, delimiter=" ", skipinitialspace=True) if row]
    records = tuple(ImageRecord(r[0], "train", "normal") for r in rows if float(r[1]) == 0.0)
    return Images("elpv solar cells (both kinds)", replace(images.dataset, records=records))


def _train(url: str, cache: str) -> None:
    from pgdefect.core.config import Settings
    from pgdefect.db.connection.engine import Database
    from pgdefect.usecases.train.options import TrainOptions
    from pgdefect.usecases.train.train import train

    options = TrainOptions(max_vectors=None)  # a tenth of the patches, however many
    report = train(Database(url), Settings(cache_dir=Path(cache)), CATEGORY, options)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024
    print(json.dumps({**asdict(report), "peak_bytes": peak * unit}))


if __name__ == "__main__":
    _train(*sys.argv[1:])
