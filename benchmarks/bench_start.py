"""How long a command that runs no network takes to answer, from the shell."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.common import Context, Report, Row, best, median_alternating, server

PROGRAM = str(Path(sys.executable).with_name("pgdefect"))
PEER = "import anomalib.models"


def measure(context: Context) -> Report:
    report = Report("start", "no images")
    with server() as database:
        environment = {**os.environ, "PGDEFECT_DATABASE_URL": database.url}

        def run(*arguments: str) -> None:
            subprocess.run(arguments, env=environment, check=True, capture_output=True)

        def peer() -> None:
            run(sys.executable, "-c", PEER)

        peer()
        floor = best(lambda: run(sys.executable, "-c", "pass"), 5)
        run(PROGRAM, "categories")
        commands = (("categories",), ("--help",))
        for command in commands[: 1 if context.quick else None]:
            seconds, peer_seconds = median_alternating(
                lambda command=command: run(PROGRAM, *command),
                peer,
                context.repeat,
            )
            report.rows.append(
                Row(
                    f"pgdefect {' '.join(command)}",
                    f'python -c "{PEER}"',
                    seconds,
                    peer_seconds,
                    target=10.0,
                    floor="python -c pass: an interpreter that does nothing",
                    floor_seconds=floor,
                )
            )
    return report
