"""What a living process holds stays; what a dead one left goes, whatever its number was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pgdefect.core import file_claims
from pgdefect.core.file_claims import claim, claimed, new_claimed, remove_unclaimed, scratch_folder

HOLDER = """
import sys, time
from pathlib import Path
from pgdefect.core.file_claims import claim
assert claim(Path(sys.argv[1])) is not None
print("held", flush=True)
time.sleep(600)
"""


@contextmanager
def held_by_another(path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_a_claim_ends_with_its_process(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").write_text("x")
    with held_by_another(folder) as process:
        assert claim(folder) is None
        remove_unclaimed([folder])
        assert (folder / "file").exists()
        process.send_signal(signal.SIGKILL)
        process.wait()
        remove_unclaimed([folder])
        assert not folder.exists()


def test_files_are_claimed_as_folders_are(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    with claimed(file):
        remove_unclaimed([file])
        assert file.exists()
    remove_unclaimed([file])
    assert not file.exists()


def test_what_is_gone_or_a_link_cannot_be_claimed(tmp_path: Path) -> None:
    assert claim(tmp_path / "missing") is None
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    assert claim(tmp_path / "link") is None
    remove_unclaimed([tmp_path / "link", tmp_path / "missing"])
    assert (tmp_path / "there").is_dir()


def test_a_scratch_folder_goes_and_so_do_those_that_killed_processes_left(tmp_path: Path) -> None:
    (tmp_path / "work-dead").mkdir()
    (tmp_path / "else-dead").mkdir()
    with held_by_another(tmp_path / "work-dead"), scratch_folder(tmp_path, "work-") as mine:
        (mine / "file").write_text("x")
        assert {p.name for p in tmp_path.iterdir()} == {"work-dead", "else-dead", mine.name}
    with scratch_folder(tmp_path, "work-") as mine:
        assert {p.name for p in tmp_path.iterdir()} == {"else-dead", mine.name}
    assert [p.name for p in tmp_path.iterdir()] == ["else-dead"]


def test_without_locks_there_is_a_folder_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(file_claims.fcntl, "flock", unsupported)
    folder, held = new_claimed(tmp_path, "work-")
    assert folder.is_dir()
    assert held is None
    # Nobody can tell whether it is in use.
    remove_unclaimed([folder])
    assert folder.is_dir()


def test_a_folder_that_another_took_the_place_of_is_not_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    flock = file_claims.fcntl.flock

    def replaced(held: int, how: int) -> None:
        folder.rename(tmp_path / "moved")
        folder.mkdir()
        flock(held, how)

    monkeypatch.setattr(file_claims.fcntl, "flock", replaced)
    before = len(os.listdir("/proc/self/fd"))
    assert claim(folder) is None
    assert len(os.listdir("/proc/self/fd")) == before
