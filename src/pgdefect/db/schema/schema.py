"""Bring a database up to the code's schema, and say whether it is.

Migrations (Alembic) run once and make tables; the files of ``sql/`` hold functions and
views and are applied again whenever their text changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from psycopg import errors as pg
from sqlalchemy import Connection, exc, text

from pgdefect.core.errors import Busy, DatabaseError, SchemaOutOfDate, UnsupportedServer
from pgdefect.core.wording import option
from pgdefect.db.access.roles import renew_grants
from pgdefect.db.connection.engine import Database, check_pgvector, driver, retry
from pgdefect.db.connection.lock_wait import LOCK_WAIT, waiting_for_locks
from pgdefect.db.schema.names import ANALYST_SCHEMA, SCHEMA
from pgdefect.db.schema.sql_files import apply_sql_files, missing_objects, resource_dir, stale_files

if TYPE_CHECKING:
    from alembic.config import Config

    from pgdefect.core.progress import Progress

# Locks, cancellation, a full disk, a lost connection, rights: not the migration's fault.
_SAID_OTHERWISE = (pg.OperationalError, pg.InsufficientPrivilege)


@dataclass(frozen=True)
class SchemaReport:
    """What :func:`check` found; `differences` is empty where database and code agree."""

    revision: str | None
    head: str
    differences: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.differences


@dataclass(frozen=True)
class UpgradeReport:
    """What :func:`upgrade` did; indexes: those built after its transaction."""

    revision_before: str | None
    revision: str
    sql_files: tuple[str, ...]
    indexes: tuple[str, ...] = ()


def is_ours(
    item: Any, name: str | None, kind: str, reflected: bool, compared: Any
) -> bool:  # Alembic's include_object
    """Leave partitions, made at run time, and Alembic's own table out of comparisons."""
    if kind == "table" and reflected:
        from pgdefect.db.schema.models import Base

        return name in {table.name for table in Base.metadata.tables.values()}
    return True


def upgrade(
    database: Database,
    *,
    lock_wait: float = LOCK_WAIT,
    progress: Progress = lambda stage, done, total: None,
) -> UpgradeReport:
    """Apply migrations and changed SQL files, in one transaction; then build what is not there.

    Where the database has the roles reader and writer, they get what is new. Indexes of large
    tables are built after the transaction, while others read and write; until then searches
    scan, and find the same. An interrupted build is resumed by the same call.

    Args:
        lock_wait: seconds to wait for each lock that others hold.

    Raises:
        UnsupportedServer: pgvector is missing or too old.
        Busy: others held a lock for longer; the message says who. As after any error of the
            transaction's, the database is what it was.
        DatabaseError: a migration failed, or the building of an index, which the message names.
    """
    from pgdefect.db.schema.indexes import build_missing

    report = retry(partial(_upgrade, database, lock_wait))
    # A connection made before the extension existed does not know its types.
    database.dispose()
    try:
        built = build_missing(database, lock_wait=lock_wait, progress=progress)
    except (Busy, DatabaseError) as error:
        raise type(error)(
            f"the database is at revision {report.revision} and in use, but an index is missing, "
            f"without which it is slower: {error}. pgdefect db upgrade resumes it"
        ) from error
    return replace(report, indexes=built)


def _upgrade(database: Database, lock_wait: float) -> UpgradeReport:
    from pgdefect.db.schema.indexes import put_off

    with begin_exclusive(database, "the upgrade", lock_wait) as connection:
        ensure_pgvector(connection, database)
        connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
        connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {ANALYST_SCHEMA}"))
        connection.execute(
            text(
                f"COMMENT ON SCHEMA {ANALYST_SCHEMA} IS "
                "'pgdefect for analysts: views and functions, no data.'"
            )
        )
        with put_off(connection):
            return bring_up(connection)


@contextmanager
def begin_exclusive(database: Database, task: str, lock_wait: float) -> Iterator[Connection]:
    """A transaction that changes the schema: one at a time in a database.

    It waits for no lock longer than `lock_wait` seconds; `task` is what it is called where it
    has to give up. Raises Busy then, naming who held the lock.
    """
    with (
        database.begin() as connection,
        waiting_for_locks(database, driver(connection), task, lock_wait),
    ):
        connection.execute(
            text("SELECT pg_advisory_xact_lock(hashtextextended('pgdefect db upgrade', 0))")
        )
        yield connection


def bring_up(connection: Connection) -> UpgradeReport:
    """Migrations, SQL files, grants, in the caller's transaction; both schemas exist.

    Raises:
        DatabaseError: a migration failed; the transaction was rolled back.
    """
    from alembic import command

    before = revision_of(connection)
    config = _alembic_config()
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except exc.DBAPIError as error:
        if isinstance(error.orig, _SAID_OTHERWISE):
            raise
        reason = " ".join(str(error.orig).split())
        raise DatabaseError(
            f"the upgrade from revision {before or 'none'} to {newest_revision()} failed: "
            f"{reason}. Nothing was changed: the database is at the revision it had, and works "
            "with the pgdefect it worked with"
        ) from error
    applied = apply_sql_files(driver(connection), vector_schema(connection))
    after = revision_of(connection)
    renew_grants(connection)
    assert after is not None
    return UpgradeReport(before, after, tuple(applied))


def check(database: Database) -> SchemaReport:
    """Compare the database with the code: revision, tables, functions and views."""
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext

    from pgdefect.db.schema.models import Base

    head = newest_revision()
    with database.connect() as connection:
        revision = revision_of(connection)
        differences: list[str] = []
        if revision != head:
            differences.append(f"revision is {revision or 'none'}, the code's is {head}")
        else:
            context = MigrationContext.configure(
                connection,
                opts={
                    "version_table_schema": SCHEMA,
                    "include_schemas": True,
                    "include_name": lambda name, kind, parents: kind != "schema" or name == SCHEMA,
                    "include_object": is_ours,
                },
            )
            differences += [_describe(item) for item in compare_metadata(context, Base.metadata)]
            differences += stale_files(driver(connection))
            differences += missing_objects(driver(connection))
    return SchemaReport(revision, head, tuple(differences))


def require_current(database: Database) -> None:
    """Raises :class:`SchemaOutOfDate` unless revision and SQL files are the code's; cheap."""
    head = newest_revision()
    with database.connect() as connection:
        revision = revision_of(connection)
        if revision == head and not stale_files(driver(connection)):
            return
    state = f"schema revision {revision}" if revision else "no schema of pgdefect's"
    if revision == head:
        state += " with functions or views of another version"
    raise SchemaOutOfDate(
        f"the database at {database.safe_url} has {state}, and this pgdefect needs {head}. "
        "Run: pgdefect db upgrade"
    )


def ensure_pgvector(connection: Connection, database: Database, *, schema: str = "") -> None:
    """Make the extension where it is missing, in `schema` (quoted) if one is given.

    Raises:
        UnsupportedServer: the server does not have it, or too old a one, or this login may not.
    """
    version = connection.scalar(text("SELECT extversion FROM pg_extension WHERE extname='vector'"))
    if version is None:
        available = connection.scalar(
            text("SELECT default_version FROM pg_available_extensions WHERE name = 'vector'")
        )
        if available is None:
            raise UnsupportedServer(
                f"the server at {database.safe_url} does not have pgvector. Install it there "
                "(for example the package postgresql-18-pgvector), or leave out "
                f"{option('database_url')} "
                "to use the embedded server"
            )
        check_pgvector(available, database.safe_url)
        try:
            with connection.begin_nested():
                if schema:
                    connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {schema}"))
                connection.execute(
                    text("CREATE EXTENSION vector" + (f" SCHEMA {schema}" if schema else ""))
                )
        except exc.ProgrammingError as error:
            raise UnsupportedServer(
                f"this login may not create the extension vector at {database.safe_url}. "
                "Have an administrator run, in this database: CREATE EXTENSION vector"
            ) from error
    # Loading the library makes its settings known, which functions below refer to.
    connection.execute(text(f"SELECT '[1]'::{vector_schema(connection)}.vector"))


def vector_schema(connection: Connection) -> str:
    """Where pgvector's types are, quoted."""
    return str(
        connection.scalar(
            text(
                "SELECT quote_ident(n.nspname) FROM pg_extension e "
                "JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'vector'"
            )
        )
    )


def _alembic_config() -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(resource_dir("migrations")).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def newest_revision() -> str:
    """The code's revision, found without Alembic: every command asks, few migrate."""
    return revisions()[-1]


def is_known(revision: str) -> bool:
    """Whether the code has this revision, so that it can upgrade from it."""
    return revision in revisions()


def revisions() -> list[str]:
    """The code's revisions, oldest first: each is the number that its file's name begins with."""
    files = (resource_dir("migrations") / "versions").glob("[0-9]*.py")
    return sorted(path.stem.partition("_")[0] for path in files)


def revision_of(connection: Connection) -> str | None:
    """The database's revision; None where it has no schema of pgdefect's."""
    if connection.scalar(text("SELECT to_regclass(:t)"), {"t": f"{SCHEMA}.alembic_version"}):
        return str(connection.scalar(text(f"SELECT version_num FROM {SCHEMA}.alembic_version")))
    return None


def _describe(item: Any) -> str:
    if isinstance(item, list):
        return "; ".join(_describe(part) for part in item)
    operation, *details = item
    names = [
        getattr(detail, "name", None) or str(detail) for detail in details if detail is not None
    ]
    return f"{operation.replace('_', ' ')}: {' '.join(names)}"
