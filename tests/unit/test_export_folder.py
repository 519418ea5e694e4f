"""An export that is killed leaves the earlier one, and nothing that the next does not tidy up."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from pgdefect.core.errors import DatabaseError, UsageError
from pgdefect.usecases.exchange.export_folder import (
    MANIFEST,
    NOTES,
    Notes,
    new_folder,
    write_manifest,
)

KILLED = """
import os, signal, sys
from pathlib import Path
from pgdefect.usecases.exchange.export_folder import new_folder, write_manifest

place, renames = Path(sys.argv[1]), int(sys.argv[2])
rename = Path.rename

def dying(self, target):
    global renames
    if not renames:
        os.kill(os.getpid(), signal.SIGKILL)
    renames -= 1
    return rename(self, target)

Path.rename = dying
with new_folder(place, force=True) as folder:
    (folder / "rows").write_text("new")
    write_manifest(folder, {})
raise SystemExit("not killed")
"""


def export(place: Path, content: str, *, force: bool = False) -> None:
    with new_folder(place, force=force) as folder:
        (folder / "rows").write_text(content)
        write_manifest(folder, {})


def killed_export(place: Path, renames: int) -> None:
    """An export that is killed after so many of its renames."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(place), str(renames)])
    assert done.returncode == -signal.SIGKILL


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_killed_export_is_tidied_up_by_the_next(tmp_path: Path) -> None:
    place = tmp_path / "tables"
    killed_export(place, 0)
    assert len(names(tmp_path)) == 1
    assert not place.exists()
    export(place, "mine")
    assert names(tmp_path) == {"tables"}
    assert (place / "rows").read_text() == "mine"


@pytest.mark.parametrize("renames", [0, 1])
def test_an_earlier_export_survives_its_replacement(tmp_path: Path, renames: int) -> None:
    """Killed before the earlier one is put aside, and between that and the new one's coming."""
    place = tmp_path / "tables"
    export(place, "old")
    killed_export(place, renames)
    assert place.exists() == (renames == 0)
    with pytest.raises(UsageError, match="force replaces it"):
        export(place, "new")
    assert names(tmp_path) == {"tables"}
    assert (place / "rows").read_text() == "old"
    killed_export(place, renames)
    export(place, "new", force=True)
    assert names(tmp_path) == {"tables"}
    assert (place / "rows").read_text() == "new"
    assert names(place) == {"rows", MANIFEST}


def test_an_export_under_way_is_left_alone(tmp_path: Path) -> None:
    place = tmp_path / "tables"
    with new_folder(place, force=False) as folder:
        (folder / "rows").write_text("first")
        export(place, "second")
        assert (folder / "rows").read_text() == "first"
        (place / "rows").unlink()
        (place / MANIFEST).unlink()
    assert (place / "rows").read_text() == "first"
    assert names(tmp_path) == {"tables"}


def test_what_is_called_alike_is_left_alone(tmp_path: Path) -> None:
    others = {".tables2.part-1", ".tables.parts", "tables.part-1"}
    for name in others:
        (tmp_path / name).mkdir()
    export(tmp_path / "tables", "x")
    assert names(tmp_path) == others | {"tables"}


def test_folders_are_as_open_as_others_that_this_process_makes(tmp_path: Path) -> None:
    export(tmp_path / "tables", "x")
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "tables").stat().st_mode == (tmp_path / "plain").stat().st_mode


# -- taken up ------------------------------------------------------------------------------

KEY = "0123456789abcdef" * 4


def cut_off(place: Path, error: Exception) -> None:
    """An export of two tables that ends while it writes the third."""
    with suppress(type(error)), new_folder(place, force=False, key=KEY) as folder:
        notes = Notes(folder)
        (folder / "one").write_text("1")
        notes.add("one", "a", ["one"])
        (folder / "two").mkdir()
        (folder / "two/x").write_text("2")
        notes.add("two", "b", ["two/x"])
        (folder / "three").write_text("half")
        raise error


def drafts(place: Path) -> list[Path]:
    return [path for path in place.parent.iterdir() if path.name.startswith(".")]


def test_whole_tables_of_an_export_that_was_cut_off_are_taken_up(tmp_path: Path) -> None:
    place = tmp_path / "tables"
    cut_off(place, DatabaseError("lost"))
    with new_folder(place, force=False, key=KEY) as folder:
        notes = Notes(folder)
        assert notes.files("one", "a") == ["one"]
        assert notes.files("two", "b") == ["two/x"]
        assert notes.files("one", "of another bank") is None
        assert {p.name for p in folder.iterdir()} == {"one", "two", NOTES}
        assert (folder / "two/x").read_text() == "2"
    assert names(tmp_path) == {"tables"}
    assert names(place) == {"one", "two"}


def test_other_ends_leave_no_draft(tmp_path: Path) -> None:
    cut_off(tmp_path / "tables", ZeroDivisionError())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", [None, "f" * 64])
def test_a_draft_of_something_else_goes(tmp_path: Path, key: str | None) -> None:
    place = tmp_path / "tables"
    cut_off(place, DatabaseError("lost"))
    assert len(drafts(place)) == 1
    with new_folder(place, force=False, key=key) as folder:
        assert drafts(place) == [folder]
        assert not list(folder.iterdir())
    assert names(tmp_path) == {"tables"}


@pytest.mark.parametrize("damage", ["file", "notes", "gone"])
def test_what_a_power_cut_tore_is_written_again(tmp_path: Path, damage: str) -> None:
    place = tmp_path / "tables"
    cut_off(place, DatabaseError("lost"))
    [draft] = drafts(place)
    if damage == "file":
        (draft / "two/x").write_text("?")
    elif damage == "gone":
        (draft / "two/x").unlink()
    else:
        content = (draft / NOTES).read_text()
        (draft / NOTES).write_text(content[: content.rindex("b") + 1])
    with new_folder(place, force=False, key=KEY) as folder:
        notes = Notes(folder)
        assert (notes.files("one", "a"), notes.files("two", "b")) == (["one"], None)
        assert {p.name for p in folder.iterdir()} == {"one", NOTES}


def test_two_exports_do_not_share_a_draft(tmp_path: Path) -> None:
    place = tmp_path / "tables"
    cut_off(place, DatabaseError("lost"))
    with new_folder(place, force=False, key=KEY) as first:
        with suppress(DatabaseError), new_folder(place, force=False, key=KEY) as second:
            assert second != first
            assert not list(second.iterdir())
            raise DatabaseError("lost")
        assert Notes(first).files("one", "a") == ["one"]
