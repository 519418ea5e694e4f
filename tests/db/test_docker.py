"""docker/ without an engine: linted, parsed, and its SQL run on a real server."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
import yaml

from pgdefect.db.embedded import EmbeddedServer
from pgdefect.db.engine import Database
from pgdefect.db.schema import upgrade

DOCKER = Path(__file__).parents[2] / "docker"
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())


def test_dockerfile_passes_the_linter() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        assert sys.platform != "linux" or os.uname().machine != "x86_64"
        return
    done = subprocess.run([hadolint, DOCKER / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_dockerfile_copies_what_exists() -> None:
    text = (DOCKER / "Dockerfile").read_text()
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE)
    names = [name for line in copied for name in line.split()]
    assert names
    for name in names:
        assert (DOCKER.parent / name).exists(), name
    assert "torch" not in text.replace("no torch", "")


def test_compose_refers_to_what_exists_and_publishes_on_loopback_only() -> None:
    db, app = COMPOSE["services"]["db"], COMPOSE["services"]["app"]
    assert (DOCKER / app["build"]["context"] / app["build"]["dockerfile"]).resolve().is_file()
    assert (DOCKER / db["volumes"][1].split(":")[0]).is_dir()
    assert all(port.startswith("127.0.0.1:") for port in db["ports"])
    assert not db["image"].endswith(":latest")
    for name in ("POSTGRES_PASSWORD", "READER_PASSWORD"):
        assert db["environment"][name].startswith("${" + name + ":?"), "no password by default"


def test_init_script_makes_a_reader_who_can_only_read(
    empty_database: Database, server: EmbeddedServer
) -> None:
    psql = shutil.which("psql") or str(server.bin_dir / "psql")
    done = subprocess.run(
        [
            psql,
            "-Xv",
            "ON_ERROR_STOP=1",
            "-f",
            DOCKER / "initdb/10-pgdefect.sql",
            empty_database.url,
        ],
        env={**os.environ, "READER_PASSWORD": "o'reilly"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    try:
        upgrade(empty_database)
        with psycopg.connect(empty_database.url) as connection:
            connection.execute("SET ROLE pgdefect_reader")
            assert connection.execute("SELECT count(*) FROM defect.images").fetchone() == (0,)
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("INSERT INTO pgdefect.category (name) VALUES ('x')")
    finally:
        with psycopg.connect(empty_database.url, autocommit=True) as connection:
            connection.execute("DROP OWNED BY pgdefect_reader")
            connection.execute("DROP ROLE pgdefect_reader")
