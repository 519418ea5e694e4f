"""python -m benchmarks [--quick] [--images DIR] [NAME...]

Measures pgdefect against its peers, prints a table of ratios for each benchmark, and keeps
the figures in benchmarks/results/. Without --images it runs on the solar cells of the
elpv-dataset package and, where they are present, on the magnetic tiles.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import tempfile
import warnings
from pathlib import Path

NAMES = (
    *("start", "features", "coreset", "export", "inspect", "train", "retrieval", "parity"),
    *("accuracy", "defects", "load", "sql", "generality", "thresholds"),
)
ON_ONE_SET = ("start", "features", "export", "load", "sql")
ON_LAST_SET = ("retrieval",)
ON_THEIR_OWN = ("generality", "thresholds")
"""These look at all data sets at hand in one report."""
ON_ALL_SETS = ("parity", "accuracy")
"""The others, which take time, leave the polycrystalline cells out."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join(NAMES)}")
    parser.add_argument("--quick", action="store_true", help="a small scale, to see that it runs")
    parser.add_argument("--images", type=Path, help="a folder as `pgdefect ingest` takes")
    parser.add_argument("--results", type=Path, help="default: benchmarks/results")
    args = parser.parse_args(arguments)
    unknown = sorted(set(args.names) - set(NAMES))
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)

    from benchmarks import common

    facts = common.machine()
    print(f"{facts['cpus']} CPUs, {facts['processor']}; load {facts['load_average']:.1f} at start")
    with tempfile.TemporaryDirectory(prefix="pgdefect-bench-") as folder:
        os.environ["PGDEFECT_CACHE_DIR"] = folder
        if facts["load_average"] > 0.5 * facts["cpus"]:
            print("other work is running: ratios favour whoever waits less; measure again without")
        sets = common.image_sets(args.images, args.quick)
        for name in args.names or NAMES:
            reports = []
            chosen = [s for s in sets if name in ON_ALL_SETS or s.name != common.POLY]
            if name in (*ON_ONE_SET, *ON_THEIR_OWN):
                chosen = chosen[:1]
            elif name in ON_LAST_SET:
                chosen = chosen[-1:]
            for images in chosen:
                print(f"{name}: {images.name}", file=sys.stderr, flush=True)
                context = common.Context(args.quick, images, Path(folder), 1 if args.quick else 3)
                reports.append(importlib.import_module(f"benchmarks.bench_{name}").measure(context))
                common.print_report(reports[-1])
            path = common.write_results(name, reports, args.quick, args.results or common.RESULTS)
            print(f"\nkept in {path}")


if __name__ == "__main__":
    main()
