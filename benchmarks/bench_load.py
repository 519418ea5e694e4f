"""An hour's line traffic in minutes: inspections as fast as they go, searches beside them.

One process inspects photographs that are all new, with one loaded `Inspector`, and stores what it
finds; threads of the same process search meanwhile in SQL for images like the newest ones. There is
no peer here: what is asked is that nothing fails, that every photograph has its row, and that
memory stays flat, in the process and in the server's.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Context, Report, server

CATEGORY = "line"
PARTS_A_SECOND = 1.0
"""What a line is taken to make; hours simulated are inspections over this rate."""
SECONDS, WARM_UP, QUICK_SECONDS = 300.0, 60.0, 10.0
HOURS = 1.0
"""The run ends when this much line is inspected, and not before its seconds are over."""
HANDED_OVER = 16
"""Photographs in one call: two batches of the network, so that one is scored while the next is
extracted. Each is a file of its own, deleted when it has been inspected."""
SEARCHERS, PAUSE = 2, 0.1
"""Threads that search, and the seconds each waits between two searches."""
K = 10
EVERY = 5.0
"""Seconds between two looks at the memory."""
MAX_GROWTH = 1.0
"""MiB per 1,000 inspections that either side may grow by, by a line through the looks of the whole
run; and of its second half, for in the first the allocators and the sessions' caches still fill."""
MIB = 1 << 20


@dataclass
class Traffic:
    """What was done, and how long each took in seconds.

    inspections: from when a photograph was handed over, with those of its call, to when its
    verdict was stored.
    """

    # Arrays: what is measured shall not be memory that the measuring takes.
    inspections: array[float] = field(default_factory=lambda: array("d"))
    calls: array[float] = field(default_factory=lambda: array("d"))
    searches: array[float] = field(default_factory=lambda: array("d"))
    errors: list[str] = field(default_factory=list)
    short: int = 0
    """Searches that found fewer than they were asked for."""
    begun: float = field(default_factory=time.perf_counter)


@dataclass
class Look:
    """Memory at one time, in bytes: resident in the process, of the server's sessions' own.

    server: while no statement runs, so that what stays is told from what a search needs while
    it lasts; server_at_work: a moment before, with whatever runs.
    """

    seconds: float
    inspections: int
    client: int
    server: int
    server_at_work: int
    sessions: int


def measure(context: Context) -> Report:
    from pgdefect.core.config import Settings
    from pgdefect.usecases.ingest import ingest_dataset
    from pgdefect.usecases.inspect.inspector import Inspector

    if memory_of(os.getpid()) is None:
        return Report("load", context.images.name, notes=["needs Linux's /proc for memory"])
    seconds = QUICK_SECONDS if context.quick else SECONDS
    warm_up = 2.0 if context.quick else WARM_UP
    images = context.images.limited(train=20 if context.quick else 300, test=50)
    settings = Settings(cache_dir=context.folder)
    report = Report("load", f"photographs made of the test images of {images.name}")
    with server() as database:
        ingest_dataset(database, images.dataset, CATEGORY)
        context.say("training")
        # Not in this process: an inspection station has no torch, whose memory is another story.
        command = [sys.executable, "-c", "from pgdefect.cli.main import main; main()"]
        command += ["--database-url", database.url, "train", CATEGORY]
        subprocess.run(command, check=True, capture_output=True)
        inspector = Inspector(database, settings, CATEGORY)
        before = count_rows(database)
        line = Line(database, settings, inspector, images.paths("test"), context.folder / "camera")
        wanted = 0 if context.quick else round(HOURS * 3600 * PARTS_A_SECOND)
        context.say(f"warming up, then {seconds:g} s of traffic and {wanted:,} images at least")
        warm = line.run(warm_up)[0]
        traffic, looks = line.run(seconds, wanted)
        after = count_rows(database)
        inspected = len(warm.inspections) + len(traffic.inspections)
        sessions = max(look.sessions for look in looks)
    _fill(report, traffic, looks, inspected)
    if not context.quick:  # seconds tell nothing of it
        _check_memory(report)
    found = {name: after[name] - before[name] for name in after}
    for name, what in (("inspection", "inspections"), ("image", "images")):
        report.check(
            f"{what} found {found[name]:,}, inspected {inspected:,}", found[name] == inspected
        )
    report.check(
        f"image embeddings found {found['image_embedding']:,}, inspected {inspected:,}",
        found["image_embedding"] == inspected,
    )
    report.check(
        f"{sessions} sessions at most, of {database.max_connections} that the process may have",
        sessions <= database.max_connections,
    )
    report.facts |= {
        "warm_up_inspections": len(warm.inspections),
        "warm_up_errors": warm.errors,
        "rows": found,
        "sessions": sessions,
        "bank_vectors": inspector.detector.bank.num_vectors,
        "searchers": SEARCHERS,
        "pause_between_searches": PAUSE,
        "handed_over_at_once": HANDED_OVER,
    }
    return report


class Line:
    """Camera, inspector and searchers; `run` lets them work for a time."""

    def __init__(
        self, database: Any, settings: Any, inspector: Any, sources: list[str], folder: Path
    ) -> None:
        self.database, self.settings, self.inspector = database, settings, inspector
        self.camera = photographs([Path(path) for path in sources], folder)
        self.newest: list[int] = []
        self.searching = [threading.Lock() for _ in range(SEARCHERS)]
        """Each searcher's, held while it searches."""

    def run(self, seconds: float, wanted: int = 0) -> tuple[Traffic, list[Look]]:
        traffic, over = Traffic(), threading.Event()
        looks: list[Look] = []
        searching = [
            threading.Thread(target=self._search, args=(traffic, over, lock))
            for lock in self.searching
        ]
        for thread in searching:
            thread.start()
        try:
            passed = 0.0
            while passed < seconds or len(traffic.inspections) < wanted:
                self._inspect(traffic)
                passed = time.perf_counter() - traffic.begun
                if not looks or passed >= looks[-1].seconds + EVERY:
                    looks.append(self._look(traffic, passed))
        finally:
            over.set()
            for thread in searching:
                thread.join()
        looks.append(self._look(traffic, time.perf_counter() - traffic.begun))
        return traffic, looks

    def _inspect(self, traffic: Traffic) -> None:
        from pgdefect.usecases.inspect.inspect import inspect

        paths = list(islice(self.camera, HANDED_OVER))
        handed_over = time.perf_counter()
        stored: list[float] = []
        try:
            report = inspect(
                self.database,
                self.settings,
                CATEGORY,
                paths,
                inspector=self.inspector,
                on_judged=lambda _: stored.append(time.perf_counter() - handed_over),
            )
        except Exception as error:
            traffic.errors.append(f"{type(error).__name__}: {error}")
            return
        finally:
            traffic.inspections.extend(stored)
            traffic.calls.append(time.perf_counter() - handed_over)
            for path in paths:
                path.unlink()
        traffic.errors += [f"{path}: {reason}" for path, reason in report.failed]
        self.newest = [i.image_id for i in report.inspections if i.image_id is not None]

    def _search(self, traffic: Traffic, over: threading.Event, lock: threading.Lock) -> None:
        from sqlalchemy import text

        query = text("SELECT image_id FROM defect.similar_images(:image, k => :k)")
        rng = random.Random(threading.get_ident())
        while not over.wait(PAUSE):
            if not (newest := self.newest):
                continue
            began = time.perf_counter()
            try:
                with lock, self.database.connect() as connection:
                    word = str(rng.choice(newest))
                    found = connection.execute(query, {"image": word, "k": K}).all()
            except Exception as error:
                traffic.errors.append(f"{type(error).__name__}: {error}")
                continue
            traffic.searches.append(time.perf_counter() - began)
            traffic.short += len(found) < K

    def _look(self, traffic: Traffic, passed: float) -> Look:
        """Between two inspections, and for `server` between two searches of each searcher."""
        with self.database.autocommit() as connection:
            rows = connection.execute(
                "SELECT pid FROM pg_stat_activity WHERE datname = current_database() "
                "AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
            ).fetchall()

        def of_sessions() -> int:
            return sum(memory_of(pid, anonymous=True) or 0 for (pid,) in rows)

        at_work = of_sessions()
        with ExitStack() as held:
            for lock in self.searching:
                held.enter_context(lock)
            at_rest = of_sessions()
        own = memory_of(os.getpid()) or 0
        return Look(passed, len(traffic.inspections), own, at_rest, at_work, len(rows))


def photographs(sources: list[Path], folder: Path) -> Iterator[Path]:
    """Files that show what the sources do and are all different: none was seen before."""
    folder.mkdir()
    for number, source in enumerate(cycle(sources)):
        path = folder / f"{number:07}{source.suffix}"
        shutil.copyfile(source, path)
        with path.open("ab") as file:  # behind the end of the image: no pixel changes
            file.write(b"photograph %d" % number)
        yield path


def count_rows(database: Any) -> dict[str, int]:
    from sqlalchemy import text

    names = ("image", "inspection", "image_embedding", "defect_embedding", "defect_region")
    with database.connect() as connection:
        return {
            name: connection.scalar(text(f"SELECT count(*) FROM pgdefect.{name}")) for name in names
        }


def memory_of(pid: int, *, anonymous: bool = False) -> int | None:
    """Bytes resident, or of these the anonymous ones; None where /proc does not say.

    A server's session fills its anonymous memory alone. The private pages are more: a page of the
    shared buffers counts as private for as long as no other process has touched it.
    """
    wanted = "Anonymous:" if anonymous else "Rss:"
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(wanted)), None)


def _fill(report: Report, traffic: Traffic, looks: list[Look], inspected: int) -> None:
    """What the run comes to: facts to keep, lines to print, requirements."""
    seconds = looks[-1].seconds
    hours = len(traffic.inspections) / PARTS_A_SECOND / 3600
    in_all = inspected / PARTS_A_SECOND / 3600
    rates = {
        "images": len(traffic.inspections) / seconds,
        "searches": len(traffic.searches) / seconds,
    }
    quantiles = {
        name: dict(zip(("p50", "p99", "max"), np.quantile(values, (0.5, 0.99, 1.0)), strict=True))
        for name, values in (
            ("inspection", traffic.inspections),
            ("call", traffic.calls),
            ("search", traffic.searches),
        )
    }
    half = [look for look in looks if 2 * look.inspections >= looks[-1].inspections]
    growth = {side: _growth(half, side) for side in ("client", "server")}
    first, last = looks[0], looks[-1]
    report.facts = {
        "seconds": seconds,
        "inspections": len(traffic.inspections),
        "searches": len(traffic.searches),
        "errors": traffic.errors,
        "images_a_second": rates["images"],
        "searches_a_second": rates["searches"],
        "latency_seconds": quantiles,
        "parts_a_second_assumed": PARTS_A_SECOND,
        "hours_simulated": hours,
        "hours_simulated_with_warm_up": in_all,
        "memory": {
            side: {
                "start_mib": getattr(first, side) / MIB,
                "end_mib": getattr(last, side) / MIB,
                "growth_mib_per_1000": growth[side],
                "growth_mib_per_1000_over_all": _growth(looks, side),
            }
            for side in growth
        },
        "server_at_work_mib": max(look.server_at_work for look in looks) / MIB,
        "looks": [vars(look) for look in looks],
    }
    report.notes += [
        f"{seconds:.0f} s: {len(traffic.inspections):,} inspections, {rates['images']:.1f} a "
        f"second, and {len(traffic.searches):,} searches, {rates['searches']:.1f} a second; "
        f"{hours:.2f} hours of a line that makes {PARTS_A_SECOND:g} part a second",
        *(
            f"{what}: p50 {1e3 * q['p50']:.0f} ms, p99 {1e3 * q['p99']:.0f} ms, longest "
            f"{1e3 * q['max']:.0f} ms"
            for what, q in (
                (f"an inspection, {HANDED_OVER} handed over at once", quantiles["inspection"]),
                ("a search", quantiles["search"]),
            )
        ),
        *(
            f"memory {where}: {getattr(first, side) / MIB:.0f} MiB after warm-up, "
            f"{getattr(last, side) / MIB:.0f} MiB at the end; {_growth(looks, side):+.2f} MiB per "
            f"1,000 inspections over all, {growth[side]:+.2f} in the second half"
            for side, where in (
                ("client", "resident in the process"),
                ("server", f"of the server's {last.sessions} sessions' own, at rest"),
            )
        ),
        f"the most that the sessions had while they worked: "
        f"{report.facts['server_at_work_mib']:.0f} MiB",
    ]
    report.check(f"errors: {len(traffic.errors)}", not traffic.errors)
    report.check(f"searches that found fewer than {K}: {traffic.short}", not traffic.short)


def _check_memory(report: Report) -> None:
    for side, memory in report.facts["memory"].items():
        for name, where in (("_over_all", "over the whole run"), ("", "in the second half")):
            value = memory[f"growth_mib_per_1000{name}"]
            report.check(
                f"memory of the {side} is flat: {value:+.2f} MiB per 1,000 inspections {where}, "
                f"of {MAX_GROWTH:g} allowed",
                value <= MAX_GROWTH,
            )


def _growth(looks: list[Look], side: str) -> float:
    """MiB per 1,000 inspections, by the least squares' line through all looks."""
    done = np.array([look.inspections for look in looks], dtype=float)
    memory = np.array([getattr(look, side) for look in looks], dtype=float)
    return float(np.polyfit(done, memory, 1)[0] * 1000 / MIB)
