"""Bring a database up to the code's schema, and say whether it is.

Migrations (Alembic) run once and make tables; the files of ``sql/`` hold functions and
views and are applied again whenever their text changes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, exc, text

from pgdefect.db.engine import Database, check_pgvector, driver
from pgdefect.db.roles import renew_grants
from pgdefect.db.sql_files import apply_sql_files, missing_objects, resource_dir, stale_files
from pgdefect.errors import SchemaOutOfDate, UnsupportedServer

if TYPE_CHECKING:
    from alembic.config import Config

SCHEMA = "pgdefect"
ANALYST_SCHEMA = "defect"
_REVISION = re.compile(r"^(revision|down_revision) = (\S+)", re.MULTILINE)


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
    """What :func:`upgrade` did."""

    revision_before: str | None
    revision: str
    sql_files: tuple[str, ...]


def is_ours(
    item: Any, name: str | None, kind: str, reflected: bool, compared: Any
) -> bool:  # Alembic's include_object
    """Leave partitions, made at run time, and Alembic's own table out of comparisons."""
    if kind == "table" and reflected:
        from pgdefect.db.models import Base

        return name in {table.name for table in Base.metadata.tables.values()}
    return True


def upgrade(database: Database) -> UpgradeReport:
    """Apply migrations and changed SQL files, in one transaction.

    Where the database has the roles reader and writer, they get what is new.

    Raises:
        UnsupportedServer: pgvector is missing or too old.
    """
    from alembic import command

    with database.begin() as connection:
        connection.execute(text("SET LOCAL lock_timeout = '30s'"))
        connection.execute(
            text("SELECT pg_advisory_xact_lock(hashtextextended('pgdefect db upgrade', 0))")
        )
        _ensure_pgvector(connection, database)
        connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
        connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {ANALYST_SCHEMA}"))
        connection.execute(
            text(
                f"COMMENT ON SCHEMA {ANALYST_SCHEMA} IS "
                "'pgdefect for analysts: views and functions, no data.'"
            )
        )
        before = _revision(connection)
        config = _alembic_config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        applied = apply_sql_files(driver(connection), _vector_schema(connection))
        after = _revision(connection)
        renew_grants(connection)
    # A connection made before the extension existed does not know its types.
    database.dispose()
    assert after is not None
    return UpgradeReport(before, after, tuple(applied))


def check(database: Database) -> SchemaReport:
    """Compare the database with the code: revision, tables, functions and views."""
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext

    from pgdefect.db.models import Base

    head = _head()
    with database.connect() as connection:
        revision = _revision(connection)
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
    head = _head()
    with database.connect() as connection:
        revision = _revision(connection)
        if revision == head and not stale_files(driver(connection)):
            return
    state = f"schema revision {revision}" if revision else "no schema of pgdefect's"
    if revision == head:
        state += " with functions or views of another version"
    raise SchemaOutOfDate(
        f"the database at {database.safe_url} has {state}, and this pgdefect needs {head}. "
        "Run: pgdefect db upgrade"
    )


def _ensure_pgvector(connection: Connection, database: Database) -> None:
    version = connection.scalar(text("SELECT extversion FROM pg_extension WHERE extname='vector'"))
    if version is None:
        available = connection.scalar(
            text("SELECT default_version FROM pg_available_extensions WHERE name = 'vector'")
        )
        if available is None:
            raise UnsupportedServer(
                f"the server at {database.safe_url} does not have pgvector. Install it there "
                "(for example the package postgresql-18-pgvector), or leave out --database-url "
                "to use the embedded server"
            )
        check_pgvector(available, database.safe_url)
        try:
            with connection.begin_nested():
                connection.execute(text("CREATE EXTENSION vector"))
        except exc.ProgrammingError as error:
            raise UnsupportedServer(
                f"this login may not create the extension vector at {database.safe_url}. "
                "Have an administrator run, in this database: CREATE EXTENSION vector"
            ) from error
    # Loading the library makes its settings known, which functions below refer to.
    schema = _vector_schema(connection)
    connection.execute(text(f"SELECT '[1]'::{schema}.vector"))


def _vector_schema(connection: Connection) -> str:
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


def _head() -> str:
    """The newest revision, read without Alembic: every command asks, few migrate."""
    revisions: dict[str, str] = {}
    for path in (resource_dir("migrations") / "versions").glob("*.py"):
        found = dict(_REVISION.findall(path.read_text(encoding="utf-8")))
        revisions[found["revision"]] = found["down_revision"]
    [head] = revisions.keys() - revisions.values()
    return head.strip('"')


def _revision(connection: Connection) -> str | None:
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
