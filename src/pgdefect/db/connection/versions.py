"""The versions of a server, its pgvector and pgdefect's schema, in one short connection."""

from __future__ import annotations

from dataclasses import dataclass

import psycopg

from pgdefect.db.connection.engine import Database


@dataclass(frozen=True)
class Versions:
    """pgvector and revision are None where the database has none."""

    postgres: str
    pgvector: str | None
    revision: str | None


def read_versions(url: str, patience: int) -> Versions:
    """Ask a server for its versions, whatever they are.

    Args:
        url: A libpq URI.
        patience: Seconds to wait for a connection, and for each answer.

    Raises:
        UsageError: the URL cannot be read. psycopg.Error: the server does not answer.
    """
    plain = Database(url).url
    limit = f"-c statement_timeout={1000 * patience} -c lock_timeout={1000 * patience}"
    with psycopg.connect(plain, connect_timeout=patience, options=limit) as connection:
        row = connection.execute(
            "SELECT current_setting('server_version'), "
            "(SELECT extversion FROM pg_extension WHERE extname = 'vector'), "
            "to_regclass('pgdefect.alembic_version') IS NOT NULL"
        ).fetchone()
        assert row is not None
        postgres, pgvector, migrated = row
        revision = None
        if migrated:
            found = connection.execute("SELECT version_num FROM pgdefect.alembic_version")
            revision = (found.fetchone() or (None,))[0]
    return Versions(postgres.split()[0], pgvector, revision)
