"""Progress, and readers that go away."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from pathlib import Path

from pgdefect.db.connection.engine import Database

from .conftest import PROGRAM, start


def test_progress_is_drawn_on_a_terminal_only(trained: Database, parts: Path) -> None:
    """Stdout stays one JSON document while stderr shows bars, with rate and time left."""
    arguments = (trained, "inspect", "--category", "parts", "--json")
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [PROGRAM, "--database-url", trained.url, *arguments[1:]],
        stdout=subprocess.PIPE,
        stderr=slave,
        text=True,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(slave)
    shown = b""
    try:
        while block := os.read(master, 65536):
            shown += block
    except OSError:  # Linux's end of file on a terminal
        pass
    os.close(master)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert len(json.loads(out)["inspections"]) == 29
    assert "Inspecting" in shown.decode()
    assert "29/29" in shown.decode()

    with start(*arguments) as piped:
        out, err = piped.communicate(timeout=60)
    assert len(json.loads(out)["inspections"]) == 29
    assert err == ""


def test_a_reader_that_goes_away_is_no_error(trained: Database) -> None:
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; '{PROGRAM}' backbones | head -c 1 >/dev/null; echo $?"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    # The note on stderr comes or not, as the reader is slower or faster.
    assert not done.stderr or done.stderr.startswith("Any other timm network")
    assert done.stdout.strip() in ("0", "1", "141")
