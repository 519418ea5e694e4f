"""`pgdefect db`: upgrade, check, status, URL and psql."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgdefect.db.connection.engine import Database

from .conftest import PROGRAM, Cli, bundled_path

pytestmark = pytest.mark.server


def test_db_upgrade_and_check(good: Cli, cli: Cli, empty_database: Database) -> None:
    before = cli(empty_database, "db", "check")
    assert before.code == 1
    assert "pgdefect db upgrade" in before.err
    report = good(empty_database, "db", "upgrade", "--json").json
    assert report["revision_before"] is None
    assert len(report["sql_files"]) >= 10
    assert good(empty_database, "db", "check", "--json").json["differences"] == []
    assert good(empty_database, "db", "upgrade").out.startswith("up to date")
    with psycopg.connect(empty_database.url) as connection:
        connection.execute("DROP FUNCTION defect.find_image(text, text) CASCADE")
    broken = cli(empty_database, "db", "check")
    assert broken.code == 1
    assert "defect.find_image is missing" in broken.out
    with psycopg.connect(empty_database.url) as connection:
        connection.execute("DROP INDEX pgdefect.ix_image_created_at")
    assert "built: ix_image_created_at\n" in good(empty_database, "db", "upgrade").out


def test_db_status_and_url_of_the_embedded_server(
    good: Cli, server: Any, trained: Database
) -> None:
    there = ("--data-dir", server.data_dir, "db")
    status = good(None, *there, "status", "--json").json
    assert status["running"] is True
    assert status["data_dir"] == str(server.data_dir)
    assert (
        f"process {status['pid']}" in good(None, "--data-dir", server.data_dir, "db", "status").out
    )
    url = good(None, "--data-dir", server.data_dir, "db", "url").out.strip()
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert good(trained, "db", "url").out.strip() == trained.url


def test_db_url_hides_the_password(good: Cli, cli: Cli, trained: Database) -> None:
    secret = Database(trained.url.replace("pgdefect@", "pgdefect:s3cret@"))
    assert "s3cret" not in good(secret, "db", "url").out
    assert "s3cret" in good(secret, "db", "url", "--password").out
    refused = cli(secret, "db", "up")
    assert refused.code == 2
    assert "s3cret" not in refused.err


def test_db_psql_and_db_url_keep_the_password_out_of_sight(tmp_path: Path) -> None:
    """Of process lists, that is; psql is given it in its environment."""
    psql = tmp_path / "psql"
    psql.write_text('#!/bin/sh\ntr "\\0" " " < /proc/$$/cmdline\necho "password=$PGPASSWORD"\n')
    psql.chmod(0o755)
    code = (
        "import sys; from unittest.mock import patch; from pgdefect.cli.main import main\n"
        "with patch('pgdefect.db.schema.schema.require_current'): main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, "db"]
    secret = "postgresql://u:hunter2@127.0.0.1:1/d?sslpassword=hunter3"
    environment = {
        **os.environ,
        "PGDEFECT_DATABASE_URL": secret,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
    }

    def run(*words: str) -> str:
        done = subprocess.run([*command, *words], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    arguments, _, password = run("psql").partition("password=")
    assert "postgresql://u@127.0.0.1:1/d" in arguments
    assert "hunter" not in arguments
    assert password.strip() == "hunter2"
    assert run("url").strip() == "postgresql://u@127.0.0.1:1/d"
    assert run("url", "--password").strip() == secret


def test_db_psql_of_the_embedded_server_is_its_own(server: Any, tmp_path: Path) -> None:
    """Another version's \\d and \\df may not work on it."""
    old = tmp_path / "psql"
    old.write_text("#!/bin/sh\necho psql of long ago\n")
    old.chmod(0o755)
    done = subprocess.run(
        [PROGRAM, "--data-dir", server.data_dir, "db", "psql", "--", "-At", "-c", "SELECT 6 * 7"],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "42\n"), done.stderr


def test_db_psql_passes_arguments_on(trained: Database) -> None:
    def psql(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PROGRAM, "--database-url", trained.url, "db", "psql", "--", *arguments],
            env={**os.environ, "PATH": bundled_path()},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    done = psql("-At", "-c", "SELECT category, images FROM defect.categories")
    assert (done.returncode, done.stdout) == (0, "parts|29\n"), done.stderr
    assert psql("-v", "ON_ERROR_STOP=1", "-c", "SELECT nonsense").returncode == 1
