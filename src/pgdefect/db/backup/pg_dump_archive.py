"""Backup files: pg_dump's custom format, pgdefect's two schemas and nothing else.

``pg_restore`` reads them; what it writes as SQL is run by `pgdefect.db.backup.restore`, section by
section: pre-data (schemas, tables, functions, views), data, post-data (indexes, constraints,
triggers).
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

from pgdefect.core.errors import BackupError
from pgdefect.db.backup.client_programs import Program, find_program
from pgdefect.db.connection.engine import MIN_POSTGRES

OUR_SCHEMAS = ("pgdefect", "defect")
PLAIN = (
    *("--no-owner", "--no-privileges", "--no-tablespaces", "--no-security-labels"),
    *("--no-publications", "--no-subscriptions"),
)
"""What belongs to a server and not to a database that moves; for pg_dump and pg_restore."""
_MAGIC = b"PGDMP"
_ENTRY = re.compile(r"^\d+; \d+ \d+ ([A-Z][A-Z ]*[A-Z]) (\S+) (.+)$")
_HEADER = re.compile(r"^--\n-- (?:Data for )?Name: .*; Type: ([A-Z ]+); Schema: .*\n--\n", re.M)
_NAME = r'(?:[^\s."]+|"(?:[^"]|"")+")'
_VECTOR_COLUMN = re.compile(rf"^\s+embedding ({_NAME})\.(?:vector|halfvec)\b", re.MULTILINE)
_REVISION = re.compile(r"^COPY \S+ \(version_num\) FROM stdin;\n(\S+)$", re.MULTILINE)


class Entry(NamedTuple):
    """A line of the archive's table of contents: ``TABLE``, ``pgdefect``, ``image owner``."""

    kind: str
    schema: str
    name: str


class Statement(NamedTuple):
    """A piece of a section, complete in itself: ``INDEX`` and its SQL."""

    kind: str
    sql: str


@dataclass(frozen=True)
class Archive:
    """A backup file whose table of contents has been read and found to be pgdefect's.

    Attributes:
        revision: of the schema in it.
        vector_schema: where its types ``vector`` and ``halfvec`` were, quoted for SQL.
    """

    path: Path
    program: Program
    entries: tuple[Entry, ...]
    revision: str
    vector_schema: str
    pre_data: str = field(repr=False)

    def count(self, *kinds: str) -> int:
        return sum(entry.kind in kinds for entry in self.entries)

    def post_data(self) -> list[Statement]:
        """Indexes, constraints and triggers, in the order they are to be made."""
        script = _script(self.program, self.path, "--section=post-data")
        headers = list(_HEADER.finditer(script))
        ends = [header.start() for header in headers[1:]] + [len(script)]
        return [
            Statement(header[1], _without_psql(script[header.end() : end]))
            for header, end in zip(headers, ends, strict=True)
        ]

    @contextmanager
    def data(self) -> Iterator[IO[bytes]]:
        """The section of data, ``COPY … FROM stdin`` with its rows, as it is decompressed.

        Raises:
            BackupError: at the end, where not all of it could be read.
        """
        command = _command(self.program, self.path, "--section=data")
        with (
            tempfile.TemporaryFile() as complaints,
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=complaints,
                env=_environment(),
                bufsize=1 << 20,
            ) as process,
        ):
            assert process.stdout is not None
            try:
                yield process.stdout
            except BaseException:
                process.kill()
                raise
            if process.wait():
                complaints.seek(0)
                raise _unreadable(self.path, complaints.read())

    def read_through(self) -> None:
        """Decompress all of it. Raises BackupError where that is not possible."""
        _run([*_command(self.program, self.path)[:-2], "--file=/dev/null", str(self.path)])


def open_archive(path: Path, *, bundled_first: bool = False) -> Archive:
    """Look at a backup file; `bundled_first` as for `find_program`.

    Raises:
        BackupError: it is none, is damaged, or holds something else than pgdefect's schemas.
        UsageError: no pg_restore here is new enough to read it.
    """
    path = path.absolute()
    try:
        with open(path, "rb") as file:
            magic = file.read(len(_MAGIC))
    except OSError as error:
        raise BackupError(f"{path} cannot be read: {error.strerror}") from error
    if magic != _MAGIC:
        raise BackupError(
            f"{path} is not a backup: it does not begin as pg_dump's custom format does. Give a "
            "file that pgdefect db backup wrote; SQL files are for psql"
        )
    program = find_program("pg_restore", least=MIN_POSTGRES, bundled_first=bundled_first)
    while True:
        done = _try([str(program.path), "--list", str(path)])
        if done.returncode == 0:
            break
        if b"unsupported version" not in done.stderr:
            raise _unreadable(path, done.stderr)
        program = find_program("pg_restore", least=program.major + 1, bundled_first=bundled_first)
    entries = tuple(_entries(done.stdout.decode(errors="replace")))
    _refuse_strangers(path, entries)
    pre_data = _script(program, path, "--section=pre-data")
    revision = _REVISION.search(
        _script(program, path, "--data-only", "--schema=pgdefect", "--table=alembic_version")
    )
    vector_schema = _VECTOR_COLUMN.search(pre_data)
    if revision is None or vector_schema is None:
        raise BackupError(
            f"{path} is an archive of pg_dump's without pgdefect's tables or their rows. Give a "
            "file that pgdefect db backup wrote"
        )
    return Archive(path, program, entries, revision[1], vector_schema[1], _without_head(pre_data))


def _entries(listing: str) -> Iterator[Entry]:
    for line in listing.splitlines():
        if found := _ENTRY.match(line):
            yield Entry(*found.groups())


def _refuse_strangers(path: Path, entries: tuple[Entry, ...]) -> None:
    for entry in entries:
        schema = entry.schema
        if schema == "-":  # of a schema itself, or a comment on one
            schema = entry.name.removeprefix("SCHEMA ").split(" ")[0]
        if schema not in OUR_SCHEMAS:
            raise BackupError(
                f"{path} holds more than pgdefect's schemas: {entry.kind.lower()} "
                f"{entry.name.split(' ')[0]} of {entry.schema}. Restore it with pg_restore, then "
                "run pgdefect db upgrade"
            )


def _command(program: Program, path: Path, *options: str) -> list[str]:
    return [str(program.path), *PLAIN, *options, "--file=-", str(path)]


def _script(program: Program, path: Path, *options: str) -> str:
    return _run(_command(program, path, *options))


def _run(command: list[str]) -> str:
    done = _try(command)
    if done.returncode:
        raise _unreadable(Path(command[-1]), done.stderr)
    try:
        return done.stdout.decode()
    except UnicodeDecodeError as error:
        raise _unreadable(Path(command[-1]), str(error).encode()) from error


def _try(command: list[str]) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, env=_environment()
    )


def _environment() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C"}


def _unreadable(path: Path, complaints: bytes) -> BackupError:
    text = complaints.decode(errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    reason = lines[0].removeprefix("pg_restore: error: ") if lines else "no reason given"
    return BackupError(
        f"{path} is damaged and cannot be restored: {reason}. Copy it here again, or take another "
        "backup"
    )


def _without_head(script: str) -> str:
    """Leave out settings for psql's session, some of which an older server does not know."""
    first = _HEADER.search(script)
    return _without_psql(script[first.start() :] if first else "")


def _without_psql(script: str) -> str:
    r"""Leave out ``\unrestrict``, which ends a script of newer versions and is for psql."""
    return re.sub(r"^\\unrestrict \w+\n", "", script, flags=re.MULTILINE)
