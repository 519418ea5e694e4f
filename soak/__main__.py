"""python -m soak [--kills N] [--seed S] [FAULT...]

Injects some 300 faults at random moments, runs each command again, and prints a table: fault,
command, times injected, rows expected, rows found, verdict. `same` says that the database and the
files hold what one undisturbed run leaves: the same rows of every table, the same vectors and
scores, no partition, index, temporary table or file more, and nothing that `pgdefect doctor` or
pg_amcheck complain of. Exit code 1 where anything else came.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from soak.cases import CASES, Data, make_data, make_templates
from soak.faults import FAULTS, Fault
from soak.lane import Lane, forker
from soak.run import SMALL_DISK_MIB, Result, jobs_of, small_disk, work

COLUMNS = ("fault", "during", "injected", "done", "rows expected", "rows found", "verdict")


def main(arguments: list[str] | None = None) -> int:
    kills = next(fault.total for fault in FAULTS if fault.name == "kill")
    parser = argparse.ArgumentParser(
        prog="python -m soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [fault.name for fault in FAULTS]
    parser.add_argument("faults", nargs="*", metavar="FAULT", help=f"of {', '.join(names)}")
    parser.add_argument(
        "--kills", type=int, default=kills, help=f"kills of commands; {kills}, others in proportion"
    )
    parser.add_argument("--seed", type=int, default=0, help="other moments; 0 by default")
    parser.add_argument("--lanes", type=int, default=2, help="faults injected at once; 2")
    args = parser.parse_args(arguments)
    if unknown := sorted(set(args.faults) - set(names)):
        parser.error(f"no fault {', '.join(unknown)}; there are: {', '.join(names)}")
    chosen = [fault for fault in FAULTS if fault.name in (args.faults or names)]
    began = time.monotonic()
    place = Path(tempfile.mkdtemp(prefix="pgdefect-soak-", dir="/tmp"))
    place.chmod(0o755)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, place, ignore_errors=True)
        results, skipped = _soak(stack, place, chosen, args)
    return report(chosen, results, skipped, time.monotonic() - began)


def _soak(
    stack: ExitStack, place: Path, chosen: list[Fault], args: argparse.Namespace
) -> tuple[list[Result], dict[str, str]]:
    needed = {name for fault in chosen for name in fault.times}
    cases = [case for case in CASES if case.name in needed]
    first = Lane(place / "lane1", forker(heavy=any(case.heavy for case in cases)))
    first.folder.mkdir()
    first.folder.chmod(0o755)
    stack.callback(first.server.stop)
    print("Drawing pictures, and running each command undisturbed …", file=sys.stderr)
    first.start()
    data: Data = make_data(place / "data")
    references = make_templates(first, data, cases)
    for name, reference in references.items():
        print(f"{name}: {reference.seconds:.2f} s undisturbed", file=sys.stderr)
        if reference.unstable:
            raise SystemExit(f"two undisturbed runs of {name} differ: {reference.unstable}")
    skipped: dict[str, str] = {}
    small: Lane | None = None
    if any(fault.small_disk for fault in chosen):
        first.server.stop()
        used = subprocess.run(
            ["du", "-sm", str(first.folder / "data")], capture_output=True, text=True, check=True
        )
        size = int(used.stdout.split()[0]) + SMALL_DISK_MIB
        if reason := stack.enter_context(small_disk(place / "small" / "data", size)):
            skipped = {fault.name: reason for fault in chosen if fault.small_disk}
            chosen = [fault for fault in chosen if not fault.small_disk]
        else:
            small = first.copy_to(place / "small")
            stack.callback(small.server.stop)
            conf = place / "small" / "data" / "postgres" / "user.conf"
            with conf.open("a") as file:
                file.write("max_wal_size = 64MB\nmin_wal_size = 32MB\n")
            small.start()
    lanes = [first]
    for number in range(2, args.lanes + 1):
        lanes.append(first.copy_to(place / f"lane{number}"))
        stack.callback(lanes[-1].server.stop)
    for lane in lanes:
        lane.start()
    kills = next(fault.total for fault in FAULTS if fault.name == "kill")
    jobs = jobs_of(chosen, cases, args.kills / kills, args.seed)
    return work(lanes, small, data, jobs, references, args.seed), skipped


def report(
    faults: Sequence[Fault], results: Sequence[Result], skipped: Mapping[str, str], seconds: float
) -> int:
    """Print the table of these faults; 1 where something is not as it should be."""
    rows = []
    failed = False
    for fault in faults:
        if fault.name in skipped:
            rows.append((fault.title, "", "0", "", "", "", f"skipped: {skipped[fault.name]}"))
            continue
        for case in fault.times:
            ours = [
                r for r in results if r.job.fault.name == fault.name and r.job.case.name == case
            ]
            if not ours:
                continue
            hit = [r for r in ours if r.hit]
            wrong = [r for r in ours if r.wrong]
            verdict = f"{len(wrong)} DIFFERENT" if wrong else "same" if hit else "NEVER HIT"
            failed |= bool(wrong) or not hit
            rows.append(
                (
                    fault.title,
                    case,
                    str(len(hit)),
                    str(sum(r.done for r in hit)),
                    f"{sum(r.expected for r in hit):,}",
                    f"{sum(r.found for r in hit):,}",
                    verdict,
                )
            )
    widths = [max(map(len, column)) for column in zip(COLUMNS, *rows, strict=True)]
    for n, row in enumerate((COLUMNS, tuple("-" * width for width in widths), *rows)):
        cells = (
            cell.ljust(width) if k in (0, 1, 6) or n == 1 else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join(cells).rstrip())
    hit = [r for r in results if r.hit]
    lost = sum(max(0, r.expected - r.found) for r in hit)
    print(
        f"\n{len(hit)} faults injected, {lost:,} rows lost, "
        f"{sum(bool(r.wrong) for r in results)} differences, {seconds / 60:.0f} minutes"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
