"""docker/ without an engine: linted and parsed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import yaml

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
    assert all(port.startswith("127.0.0.1:") for port in db["ports"])
    assert not db["image"].endswith(":latest")
    password = db["environment"]["POSTGRES_PASSWORD"]
    assert password.startswith("${POSTGRES_PASSWORD:?"), "no password by default"
