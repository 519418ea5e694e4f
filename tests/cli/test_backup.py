"""``pgdefect db backup`` and ``db restore`` as a person meets them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pgdefect.db.connection.engine import Database
from tests.places import short_folder

from .conftest import Cli, contents

pytestmark = pytest.mark.server


@pytest.fixture
def new_place() -> Iterator[Path]:
    """As `place`, with nothing in it and gone after the test."""
    with short_folder() as folder:
        yield folder


def test_a_backup_and_its_restoration_say_what_they_did(
    good: Cli, cli: Cli, trained: Database, empty_database: Database, tmp_path: Path, parts: Path
) -> None:
    file = tmp_path / "parts.dump"
    written = good(trained, "db", "backup", file)
    assert written.out.startswith(f"{file}: ")
    assert "at revision" in written.out
    assert "Photographs are not in it" in written.err
    assert f"  {parts}\n" in written.err
    assert "--force" in cli(trained, "db", "backup", file).error
    before = contents(trained)
    printed = good(empty_database, "db", "restore", file).out
    assert f"{before['image']:,}" not in ("", printed)
    assert " rows in " in printed
    assert contents(empty_database) == {**before, "audit": before["audit"] + 1}
    # As before the backup: what is known, and what the networks say.
    assert good(empty_database, "categories").out == good(trained, "categories").out
    refused = cli(empty_database, "db", "restore", file)
    assert "--replace" in refused.error
    done = good(empty_database, "db", "restore", file, "--replace", "--json").json
    assert done["replaced"] is True
    assert done["num_rows"]["image"] == before["image"]
    found = good(empty_database, "search", parts / "test/chip/000.png", "--json").json
    assert found == good(trained, "search", parts / "test/chip/000.png", "--json").json


def test_the_server_of_ones_own_needs_no_program_on_path(
    good: Cli, new_place: Path, trained: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "parts.dump"
    good(trained, "db", "backup", file)
    monkeypatch.setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
    here = ("--data-dir", new_place / "data", "db")
    # As the first command of all: it makes the server, too.
    good(None, *here, "restore", file)
    again = good(None, *here, "backup", tmp_path / "again.dump", "--json").json
    assert again["num_bytes"] == (tmp_path / "again.dump").stat().st_size
    assert "agree" in good(None, *here, "check").out
