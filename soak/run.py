"""Faults injected by the hundred, and what came of each."""

from __future__ import annotations

import os
import queue
import random
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from threadpoolctl import threadpool_limits

from soak.cases import Case, Data, Reference
from soak.faults import Fault, Moment, free_bytes
from soak.lane import UNDOCUMENTED, Command, Lane, Place, files_of
from soak.state import State, database_state, differences

ATTEMPTS = 8
"""Draws until a fault hits: one that comes after the command's end is not counted."""
SMALL_DISK_MIB = 400
"""Room on the disk that is to be filled, beside what the server has there at first."""


@dataclass(frozen=True)
class Job:
    """One fault to inject; the number makes its random moment its own."""

    fault: Fault
    case: Case
    number: int


@dataclass
class Result:
    """What came of a job: rows that should be there and are, and how the rest differs.

    done: all was stored when the fault came, so that the command was not run again.
    """

    job: Job
    hit: bool = False
    done: bool = False
    expected: int = 0
    found: int = 0
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0


def jobs_of(faults: Iterable[Fault], cases: Sequence[Case], scale: float, seed: int) -> list[Job]:
    """So many times each fault's usual number, at least one of each kind, in a random order."""
    named = {case.name: case for case in cases}
    jobs = [
        Job(fault, named[name], number)
        for fault in faults
        for name, times in fault.times.items()
        for number in range(max(1, round(times * scale)))
    ]
    random.Random(seed).shuffle(jobs)
    return jobs


def run_job(lane: Lane, data: Data, job: Job, reference: Reference, seed: int) -> Result:
    """Inject one fault, run the command again, and compare."""
    result, began = Result(job), time.monotonic()
    growth = _growth(lane, data, job) if job.fault.small_disk else 0
    for attempt in range(ATTEMPTS):
        rng = random.Random(f"{seed} {job.fault.name} {job.case.name} {job.number} {attempt}")
        with lane.place(job.case.template) as place:
            arguments = job.case.arguments(data, place)

            try:
                command, result.hit = job.fault.inject(
                    lane,
                    place,
                    partial(lane.begin, place, arguments),
                    Moment(rng, reference.seconds, growth),
                )
                if not result.hit:
                    continue
                result.wrong += _undocumented(command)
                lane.settle(place)
                result.done = job.case.heavy and _is_done(place, reference.state)
                if not result.done:
                    lane.run(place, arguments)
                state = lane.state(place)
                result.wrong += differences(reference.state, state)
                result.expected, result.found = reference.state.num_rows, state.num_rows
            except (RuntimeError, TimeoutError) as error:
                result.wrong.append(str(error))
            break
    result.seconds = time.monotonic() - began
    return result


def _undocumented(command: Command) -> list[str]:
    """What a command said that was not killed: one line, of the errors that we know."""
    code, said = command.wait(), command.output
    if code < 0 and code != -9:
        return [f"the command died of signal {-code}: {said[-500:]}"]
    if code > 0 and (UNDOCUMENTED in said or "Traceback" in said):
        return [f"an error that is not documented: {said[-1000:]}"]
    return []


def _is_done(place: Place, expected: State) -> bool:
    """Whether the fault came after the work: training again would make another version."""
    rows, _ = database_state(place.database.url)
    return rows == expected.rows and files_of(place) == expected.files


_growths: dict[tuple[Path, str], int] = {}


def _growth(lane: Lane, data: Data, job: Job) -> int:
    """Bytes that a command takes on the server's disk: measured on its first run there."""
    key = (lane.folder, job.case.name)
    if key not in _growths:
        with lane.place(job.case.template) as place:
            with lane.admin() as connection:
                connection.execute("CHECKPOINT")
            before = free_bytes(lane.server)
            lane.run(place, job.case.arguments(data, place))
            _growths[key] = max(1 << 20, before - free_bytes(lane.server))
    return _growths[key]


@contextmanager
def small_disk(folder: Path, size_mib: int) -> Iterator[str | None]:
    """A tmpfs of that size on the folder, for a block; yields why there is none, or None."""
    folder.mkdir(parents=True, exist_ok=True)
    done = (
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m,mode=0755", "tmpfs", str(folder)],
            capture_output=True,
            text=True,
        )
        if os.geteuid() == 0
        else None
    )
    if done is None or done.returncode:
        yield "a tmpfs takes root to mount" if done is None else done.stderr.strip()
        return
    try:
        yield None
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


def work(
    lanes: Sequence[Lane],
    disk_lane: Lane | None,
    data: Data,
    jobs: Sequence[Job],
    references: dict[str, Reference],
    seed: int,
) -> list[Result]:
    """Do all jobs, as many at once as there are lanes; those on a small disk one by one."""
    units: queue.Queue[list[Job]] = queue.Queue()
    if on_disk := [job for job in jobs if job.fault.small_disk]:
        units.put(on_disk)
    for job in jobs:
        if not job.fault.small_disk:
            units.put([job])
    results: list[Result] = []
    errors: list[BaseException] = []

    def serve(lane: Lane) -> None:
        try:
            while not errors:
                for job in units.get_nowait():
                    place = disk_lane if job.fault.small_disk else lane
                    assert place is not None
                    try:
                        result = run_job(place, data, job, references[job.case.name], seed)
                    except Exception:
                        result = Result(job, wrong=[traceback.format_exc()])
                    results.append(result)
                    _progress(result, len(results), len(jobs))
        except queue.Empty:
            return
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=serve, args=(lane,)) for lane in lanes]
    try:
        # A process that is forked while another thread multiplies takes OpenBLAS's threads from
        # it, and it waits for ever: one thread has nobody to wait for.
        with threadpool_limits(limits=1, user_api="blas"):
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    except KeyboardInterrupt:
        # What is under way is finished, and what was found so far is told.
        errors.append(KeyboardInterrupt())
        for thread in threads:
            thread.join()
        return results
    if errors:
        raise errors[0]
    return results


def _progress(result: Result, done: int, total: int) -> None:
    job = result.job
    verdict = "DIFFERENT" if result.wrong else "same" if result.hit else "not hit"
    print(
        f"[{done}/{total}] {job.fault.name} {job.case.name} #{job.number}: {verdict} "
        f"({result.seconds:.1f} s)",
        file=sys.stderr,
        flush=True,
    )
    for line in result.wrong:
        print(f"    {line}", file=sys.stderr, flush=True)
