"""``pgdefect --version``: of the program, and of the database where one can be reached."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pgdefect import __version__

PATIENCE = 2
"""Seconds that a server has to answer; nobody asked for it by name."""


def version_lines(database_url: str | None, data_dir: Path | None) -> Iterator[str]:
    """What to print: the program's version, then what is known of the database.

    Starts no server and raises nothing: of a database that cannot be asked it says why.
    """
    yield f"pgdefect {__version__}"
    try:
        yield from _database_lines(database_url, data_dir)
    except Exception as error:  # whatever is wrong with settings or server, the version is printed
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        yield f"database: cannot be asked: {reason}"


def _database_lines(database_url: str | None, data_dir: Path | None) -> Iterator[str]:
    from pgdefect.core.config import load_settings

    settings = load_settings(database_url=database_url, data_dir=data_dir)
    if settings.database_url is None:
        from pgdefect.db.server.embedded import EmbeddedServer

        server = EmbeddedServer(settings.data_dir)
        if not server.status().running:
            yield f"database: no server running in {settings.data_dir}"
            return
        url = server.url()
    else:
        url = settings.database_url.get_secret_value()
    from pgdefect.db.connection.versions import read_versions
    from pgdefect.db.schema.schema import newest_revision

    found = read_versions(url, PATIENCE)
    newest = newest_revision()
    yield f"PostgreSQL {found.postgres}"
    yield f"pgvector {found.pgvector or 'not installed'}"
    if found.revision == newest:
        yield f"schema at revision {newest}, up to date"
    elif found.revision is None:
        yield f"schema not there yet, revision {newest} is this version's"
    else:
        yield f"schema at revision {found.revision}, {newest} is this version's"
