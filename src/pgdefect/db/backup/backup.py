"""Write pgdefect's schemas, rows and all, into one file that `pgdefect.db.backup.restore` reads."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import text

from pgdefect.core.errors import (
    BackupError,
    Busy,
    DatabaseError,
    DatabaseFull,
    NotFound,
    PermissionDenied,
    PgdefectError,
    UsageError,
)
from pgdefect.core.progress import Progress
from pgdefect.core.wording import option
from pgdefect.db.backup.client_programs import environment_for, find_program
from pgdefect.db.backup.pg_dump_archive import OUR_SCHEMAS, PLAIN, open_archive
from pgdefect.db.connection.engine import Database
from pgdefect.db.schema.schema import revision_of

LOCK_WAIT_MS = 30_000


@dataclass(frozen=True)
class BackupReport:
    """What :func:`backup` wrote: of which revision, tables with rows of their own, bytes.

    Attributes:
        folders: those that the images lie in, which are not in the backup.
    """

    path: Path
    revision: str
    num_tables: int
    num_bytes: int
    folders: tuple[str, ...]


def backup(
    database: Database,
    path: Path,
    *,
    force: bool = False,
    bundled_first: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> BackupReport:
    """Dump the schemas ``pgdefect`` and ``defect``, as one transaction sees them.

    Any revision of the schema will do. The file is written under another name beside `path`, read
    through, and renamed: under `path` there is a whole backup or what was there before. Only its
    owner may read it.

    Raises:
        UsageError: `path` exists and not `force`, or cannot be written; no pg_dump that is new
            enough is installed.
        NotFound: the database has no schema of pgdefect's.
        Busy: another backup to `path` is running, or a session holds a table for half a minute.
        DatabaseFull: no space is left for the file.
    """
    path = path.absolute()
    _check_free(path, force)
    with database.connect() as connection:
        revision = revision_of(connection)
        folders: list[str] = []
        if revision is not None:
            query = text("SELECT path FROM pgdefect.image_root ORDER BY path")
            folders += connection.scalars(query)
        major, num_tables = connection.execute(
            text(
                "SELECT current_setting('server_version_num')::integer / 10000, "
                "(SELECT count(*) FROM pg_class WHERE relkind = 'r' "
                "AND relnamespace = to_regnamespace('pgdefect'))"
            )
        ).one()
    database.dispose()
    if revision is None:
        raise NotFound(
            f"the database at {database.safe_url} has no schema of pgdefect's, so there is "
            "nothing to back up"
        )
    program = find_program("pg_dump", least=major, bundled_first=bundled_first)
    with _draft(path) as (draft, lock), environment_for(database) as environment:
        command = [
            *(str(program.path), "--format=custom", f"--file={draft}", *PLAIN),
            *(f"--schema={schema}" for schema in OUR_SCHEMAS),
            *("--encoding=UTF8", f"--lock-wait-timeout={LOCK_WAIT_MS}"),
            *("--no-password", "--verbose", f"--dbname={database.safe_url}"),
        ]
        _dump(command, environment, lock, lambda done: progress("backup", done, num_tables), path)
        archive = open_archive(draft, bundled_first=bundled_first)
        archive.read_through()
        num_bytes = draft.stat().st_size
        _check_free(path, force)
        draft.replace(path)
    num_dumped = archive.count("TABLE DATA")
    return BackupReport(path, archive.revision, num_dumped, num_bytes, tuple(folders))


def _check_free(path: Path, force: bool) -> None:
    if path.is_dir() or not path.name:
        raise UsageError(f"{path} is a folder; give the name of a file to write")
    if path.exists() and not force:
        raise UsageError(f"{path} exists; give another name, or {option('force')} to replace it")
    if not path.parent.is_dir():
        raise UsageError(f"there is no folder {path.parent} to write {path.name} in")


@contextmanager
def _draft(path: Path) -> Iterator[tuple[Path, int]]:
    """A file beside `path` that no other backup writes, and the descriptor of its lock.

    Removed again where the block did not rename it. What a killed run left is written over.
    """
    draft = path.with_name(f".{path.name}.part")
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        lock = os.open(draft, flags, 0o600)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"another backup to {path} is running; wait for it to end") from None
        try:
            os.fchmod(lock, 0o600)
            yield draft, lock
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        os.close(lock)


def _dump(
    command: list[str],
    environment: dict[str, str],
    lock: int,
    tables_done: Callable[[int], None],
    path: Path,
) -> None:
    """Run pg_dump, which also syncs the file to disk."""
    said: list[str] = []
    done = 0
    # With the lock's descriptor: a pg_dump that outlives this process still holds it.
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment,
        encoding="utf-8",
        errors="replace",
        pass_fds=[lock],
        umask=0o077,
    ) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if "dumping contents of table" in line:
                    tables_done(done)
                    done += 1
                elif re.match(r"pg_dump: (error|detail|hint): ", line):
                    said.append(line.strip())
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise _explained(" ".join(said) or f"pg_dump ended with code {process.returncode}", path)
    tables_done(done)


def _explained(said: str, path: Path) -> PgdefectError:
    said = said.replace("pg_dump: ", "")
    if "No space left on device" in said or "Disk quota exceeded" in said:
        return DatabaseFull(
            f"no space is left for a backup in {path.parent}; nothing was left there. Free some, "
            f"or write it elsewhere ({said})"
        )
    # pg_dump waits for locks by a timeout of the statement that asks for them.
    if "lock timeout" in said or ("statement timeout" in said and "LOCK TABLE" in said):
        return Busy(
            f"a session has held a table of pgdefect's for more than {LOCK_WAIT_MS // 1000} "
            f"seconds, so that it cannot be read ({said}). Try again later"
        )
    if "permission denied" in said:
        return PermissionDenied(
            f"this login may not read all that belongs into a backup: {said}. Log in as the owner "
            "of the schema pgdefect"
        )
    if "File too large" in said:
        return BackupError(f"the file system of {path.parent} takes no file as large: {said}")
    return DatabaseError(f"no backup was written: {said}")
