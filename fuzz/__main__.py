"""python -m fuzz [--seed N] [--scale X] [NAME...]

Tries over a hundred thousand bad inputs on what reads them, and prints what came of it: only
errors that pgdefect documents, or the input is accepted and what was read of it holds. Each target
runs in a process of its own, so that one that dies is seen. Exit code 1 where anything else came.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

NAMES = "names in SQL"
LIMIT_S = 3600


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m fuzz",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="targets; all by default")
    parser.add_argument("--seed", type=int, default=0, help="other inputs; 0 by default")
    parser.add_argument("--scale", type=float, default=1.0, help="times as many inputs")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    from fuzz.targets import NAMES_INPUTS, TARGETS

    counts = {target.name: target.inputs for target in TARGETS} | {NAMES: NAMES_INPUTS}
    if unknown := sorted(set(args.names) - set(counts)):
        parser.error(f"no target {', '.join(unknown)}; there are: {', '.join(counts)}")
    if args.worker:
        inputs = max(1, int(counts[args.names[0]] * args.scale))
        json.dump(_work(args.names[0], inputs, args.seed), sys.stdout)
        return 0
    found = []
    print(_line("target", "inputs", "accepted", "refused", "MiB", "s", "verdict", "refused with"))
    for name in args.names or counts:
        found.append(result := _in_a_process(name, args.seed, args.scale))
        by_kind = ", ".join(f"{kind} {n:,}" for kind, n in sorted(result["refused"].items()))
        print(
            _line(
                name,
                f"{result['tried']:,}",
                f"{result['accepted']:,}",
                f"{sum(result['refused'].values()):,}",
                f"{result['peak_mib']:,}",
                f"{result['seconds']:.0f}",
                "FAULT" if result["faults"] else "good",
                by_kind,
            ),
            flush=True,
        )
    faults = [fault for result in found for fault in result["faults"].items()]
    tried = sum(result["tried"] for result in found)
    print(f"\n{tried:,} inputs, {len(faults)} kinds of undocumented errors")
    for kind, told in faults:
        print(f"\n{kind}\n{told}", file=sys.stderr)
    return 1 if faults else 0


def _line(*cells: str) -> str:
    widths = (18, 8, 9, 8, 6, 5, 8, 0)
    padded = [
        cell.ljust(width) if n in (0, 6, 7) else cell.rjust(width)
        for n, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(padded).rstrip()


def _in_a_process(name: str, seed: int, scale: float) -> dict[str, Any]:
    started = time.monotonic()
    command = [sys.executable, "-m", "fuzz", "--worker", name]
    command += ["--seed", str(seed), "--scale", str(scale)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    if done.returncode == 0:
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    else:
        why = f"exit code {done.returncode}"
        if done.returncode < 0:
            why = signal.Signals(-done.returncode).name
        fault = {f"{name}: the process died ({why})": done.stderr[-4000:]}
        result = {"tried": 0, "accepted": 0, "refused": {}, "faults": fault, "peak_mib": 0}
    return {**result, "seconds": time.monotonic() - started}


def _work(name: str, inputs: int, seed: int) -> dict[str, Any]:
    """Try one target here."""
    from fuzz.run import attempt
    from fuzz.targets import TARGETS, names, names_in, scratch_database

    with tempfile.TemporaryDirectory(prefix="pgdefect-fuzz-", dir="/tmp") as place:
        os.chmod(place, 0o755)
        folder = Path(place)
        if name == NAMES:
            with scratch_database(folder) as database:
                outcome = attempt(names_in(database), names, inputs, seed)
        else:
            [target] = [target for target in TARGETS if target.name == name]
            outcome = attempt(target.prepare(folder), target.strategy(), inputs, seed)
    return {
        "tried": outcome.tried,
        "accepted": outcome.accepted,
        "refused": outcome.refused,
        "faults": outcome.faults,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


if __name__ == "__main__":
    sys.exit(main())
