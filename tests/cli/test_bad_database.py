"""A database that cannot work, and settings: one clear line, and nothing left behind."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import numpy as np
import psycopg
import pytest

from pgdefect.core.config import Settings
from pgdefect.core.errors import Conflict
from pgdefect.db.connection.engine import Database
from pgdefect.db.search.search import SearchFilter, nearest

from .conftest import PROGRAM, TINY, Cli, contents, value


def test_no_database(cli: Cli) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    nowhere = Database(f"postgresql://someone:s3cret@127.0.0.1:{port}/x")
    for arguments in (("categories",), ("db", "check"), ("db", "upgrade"), ("db", "psql")):
        result = cli(nowhere, *arguments)
        assert result.code == 1
        assert f"127.0.0.1:{port}" in result.error
        assert "--database-url" in result.error
        assert "s3cret" not in result.err


def test_no_such_database(cli: Cli, trained: Database) -> None:
    result = cli(Database(trained.url.replace("/test_", "/nosuch_")), "categories")
    assert result.code == 1
    assert "nosuch_" in result.error


@pytest.mark.parametrize("url", ["mysql://host/name", "nonsense", "postgresql://[bad"])
def test_a_url_that_is_none(cli: Cli, url: str) -> None:
    result = cli(None, "--database-url", url, "categories")
    assert result.code in (1, 2)
    assert "URL" in result.error


def test_a_database_without_the_schema(cli: Cli, empty_database: Database, parts: Path) -> None:
    for arguments in (
        ("categories",),
        ("ingest", parts, "--category", "parts"),
        ("train", "parts"),
        ("search", "1"),
    ):
        result = cli(empty_database, *arguments)
        assert result.code == 1
        assert "pgdefect db upgrade" in result.error
    assert value(empty_database, "SELECT to_regnamespace('pgdefect')") is None


def test_wrong_password(cli: Cli, place: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    up = cli(None, "--data-dir", place / "data", "db", "up", "--listen", address)
    assert up.code == 0, up.err
    url = cli(None, "--data-dir", place / "data", "db", "url", "--password").out.strip()
    right = psycopg.conninfo.conninfo_to_dict(url)
    assert cli(Database(url), "categories").code == 0
    wrong = Database(url.replace(str(right["password"]), "wr0ng"))
    result = cli(wrong, "categories")
    assert result.code == 1
    assert "refuses this login" in result.error
    assert "password" in result.error
    assert "wr0ng" not in result.err
    assert cli(None, "--data-dir", place / "data", "db", "down").code == 0
    assert cli(Database(url), "categories").code == 1


def test_vectors_of_another_extractor(trained: Database) -> None:
    with pytest.raises(
        Conflict, match=r"48 dimensions, and what extractor 1 is searched for by picture has 152"
    ):
        nearest(trained, "picture", 1, np.ones(48, dtype=np.float32), 3, SearchFilter())


@pytest.mark.parametrize("tag", ["CREATE TABLE", "CREATE INDEX"])
def test_no_space_left_while_loading(cli: Cli, trained: Database, tag: str) -> None:
    with psycopg.connect(trained.url) as connection:
        connection.execute(
            "CREATE FUNCTION full_disk() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN "
            "RAISE EXCEPTION 'could not extend file: No space left on device' "
            "USING ERRCODE = '53100'; END $$"
        )
        connection.execute(
            f"CREATE EVENT TRIGGER full_disk ON ddl_command_end WHEN TAG IN ('{tag}') "
            "EXECUTE FUNCTION full_disk()"
        )
    before = contents(trained)
    result = cli(trained, "train", "parts", *TINY)
    assert result.code == 1
    assert "no space left" in result.error
    assert "free some space" in result.error
    assert contents(trained) == before
    assert value(trained, "SELECT id FROM pgdefect.detector WHERE active") == 1


def test_a_training_under_way_is_not_disturbed(cli: Cli, trained: Database) -> None:
    with trained.lock("training of parts"):
        result = cli(trained, "train", "parts", *TINY)
    assert result.code == 1
    assert "training of parts is running" in result.error


def test_errors_show_where_they_come_from_only_with_verbose(cli: Cli, trained: Database) -> None:
    assert "Traceback" not in cli(trained, "search", "nosuch").err
    told = cli(trained, "--verbose", "search", "nosuch")
    assert told.code == 1
    assert "Traceback" in told.err
    assert "find_image" in told.err
    assert cli(None, "--verbose", "search").code == 2


# -- settings --------------------------------------------------------------------------


def test_settings_that_cannot_be_read(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pgdefect.toml").write_text('database_url = "unclosed\n')
    result = cli(None, "categories")
    assert result.code == 2
    assert "pgdefect.toml" in result.error
    (tmp_path / "pgdefect.toml").write_text("database_url = 5\n")
    result = cli(None, "categories")
    assert result.code == 2
    assert "DATABASE_URL" in result.error
    assert "5" in result.error


def test_a_bad_url_in_the_environment(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGDEFECT_DATABASE_URL", "sqlite:///x")
    result = cli(None, "categories")
    assert result.code == 2
    assert "postgresql://" in result.error


def test_a_missing_extra_names_what_to_install(trained: Database) -> None:
    """As on an inspection station, which has no torch."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'anomalib', 'timm']));"
        "from pgdefect.cli.main import main; main()"
    )
    done = subprocess.run(
        [str(Path(PROGRAM).with_name("python")), "-c", code, "--database-url", trained.url,
         "train", "parts"],
        capture_output=True,
        text=True,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert "pip install 'pgdefect[train]'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_settings_fixture_is_not_the_developers(settings: Settings) -> None:
    assert settings.database_url is None
