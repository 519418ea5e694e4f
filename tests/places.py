"""Folders for servers of the tests' own, all below one that goes when the run ends.

However it ends: a process of its own waits for that. A run that is interrupted comes by its
fixtures' ends; one that crashes, is killed, or whose workers pytest-xdist kills after ten seconds
does not, and servers run on when the process that started them is gone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

RUN = "TESTS_RUN_FOLDER"
"""The environment variable with the folder of this run, for workers too."""
_WAIT_SECONDS = 150


@contextmanager
def short_folder() -> Iterator[Path]:
    """A folder with a short path, which every user may enter; servers left in it are stopped."""
    folder = Path(tempfile.mkdtemp(prefix="", dir=os.environ[RUN]))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        _remove(folder)


class RunFolder:
    """The folder of a run, and the process that removes it when the run has ended."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="pgdefect-test-", dir="/tmp"))
        self.path.chmod(0o755)
        os.environ[RUN] = str(self.path)
        # In a session of its own: Ctrl-C in the terminal is not for it.
        self._remover = subprocess.Popen(
            [sys.executable, __file__, self.path], stdin=subprocess.PIPE, start_new_session=True
        )

    def close(self) -> None:
        """Have it removed, and wait for that."""
        assert self._remover.stdin is not None
        self._remover.stdin.close()
        self._remover.wait(timeout=_WAIT_SECONDS)
        os.environ.pop(RUN, None)


def _remove(folder: Path) -> None:
    from pgdefect.db.server.embedded import EmbeddedServer

    for cluster in folder.glob("**/postgres/postmaster.pid"):
        EmbeddedServer(cluster.parents[1]).stop()
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.stdin.read()  # until the run has closed its end, or is no more
    if Path(sys.argv[1]).is_dir() and any(Path(sys.argv[1]).iterdir()):
        _remove(Path(sys.argv[1]))
    shutil.rmtree(sys.argv[1], ignore_errors=True)
