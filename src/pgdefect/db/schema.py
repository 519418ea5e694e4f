"""Bring a database up to the code's schema, and say whether it is.

Migrations (Alembic) run once and make tables; the files of ``sql/`` hold functions and
views and are applied again whenever their text changes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from sqlalchemy import Connection, exc, text

from pgdefect.db.engine import Database, check_pgvector, driver
from pgdefect.errors import DatabaseError, SchemaOutOfDate, UnsupportedServer

if TYPE_CHECKING:
    from alembic.config import Config

SCHEMA = "pgdefect"
ANALYST_SCHEMA = "defect"
_REVISION = re.compile(r"^(revision|down_revision) = (\S+)", re.MULTILINE)
_OBJECT = re.compile(r"^CREATE OR REPLACE (FUNCTION|VIEW) (\w+)\.(\w+)", re.MULTILINE)


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


def resource_dir(name: str) -> Path:
    """``migrations`` or ``sql``: inside an installed wheel, else at the top of the checkout."""
    package = Path(__file__).resolve().parents[1]
    for candidate in (package / name, package.parents[1] / name):
        if candidate.is_dir():
            return candidate
    raise DatabaseError(f"pgdefect's {name} are missing from the installation; reinstall pgdefect")


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
        applied = _apply_sql_files(connection)
        after = _revision(connection)
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
            differences += _stale_files(connection)
            differences += _missing_objects(connection)
    return SchemaReport(revision, head, tuple(differences))


def require_current(database: Database) -> None:
    """Raises :class:`SchemaOutOfDate` unless revision and SQL files are the code's; cheap."""
    head = _head()
    with database.connect() as connection:
        revision = _revision(connection)
        if revision == head and not _stale_files(connection):
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


def _sql_files() -> Iterator[tuple[str, str, str]]:
    """Name, sha256 and text of each file, in the order they are applied."""
    root = resource_dir("sql")
    for folder in ("functions", "views"):
        for path in sorted((root / folder).glob("*.sql")):
            content = path.read_text(encoding="utf-8")
            digest = hashlib.sha256(content.encode()).hexdigest()
            yield f"{folder}/{path.name}", digest, content


def _held_files(connection: Connection) -> dict[str, str]:
    rows = connection.execute(text(f"SELECT name, sha256 FROM {SCHEMA}.sql_file"))
    return {name: digest for name, digest in rows}


def _stale_files(connection: Connection) -> list[str]:
    held = _held_files(connection)
    files = {name: digest for name, digest, _ in _sql_files()}
    stale = [name for name, digest in files.items() if held.get(name) != digest]
    return [f"sql/{name} is not the version in the database" for name in stale] + [
        f"sql/{name} is gone from the code" for name in held.keys() - files
    ]


def _apply_sql_files(connection: Connection) -> list[str]:
    raw = driver(connection)
    held = _held_files(connection)
    schema = _vector_schema(connection)
    applied = []
    for name, digest, content in _sql_files():
        if held.get(name) == digest:
            continue
        statements = content.replace(':"vector_schema"', schema)
        try:
            with raw.transaction():
                raw.execute(statements)
        except (
            psycopg.errors.InvalidTableDefinition,
            psycopg.errors.InvalidFunctionDefinition,
            psycopg.errors.AmbiguousFunction,
        ):
            # Columns or result type changed, which CREATE OR REPLACE cannot do; or arguments,
            # which makes a second function of the name, and the COMMENT behind it ambiguous.
            _drop_objects(raw, content)
            raw.execute(statements)
        raw.execute(
            "INSERT INTO pgdefect.sql_file (name, sha256) VALUES (%s, %s) "
            "ON CONFLICT (name) DO UPDATE SET sha256 = excluded.sha256, applied_at = now()",
            [name, digest],
        )
        applied.append(name)
    return applied


def _drop_objects(raw: psycopg.Connection[Any], content: str) -> None:
    for kind, schema, name in _OBJECT.findall(content):
        if kind == "VIEW":
            raw.execute(f"DROP VIEW {schema}.{name}")
        else:
            for (signature,) in raw.execute(
                "SELECT oid::regprocedure::text FROM pg_proc "
                "WHERE pronamespace = %s::regnamespace AND proname = %s",
                [schema, name],
            ).fetchall():
                raw.execute(f"DROP FUNCTION {signature}")


def _missing_objects(connection: Connection) -> list[str]:
    missing = []
    for _, _, content in _sql_files():
        for kind, schema, name in _OBJECT.findall(content):
            catalog, prefix = ("pg_class", "rel") if kind == "VIEW" else ("pg_proc", "pro")
            found = connection.scalar(
                text(
                    f"SELECT count(*) FROM {catalog} "
                    f"WHERE {prefix}namespace = to_regnamespace(:schema) AND {prefix}name = :name"
                ),
                {"schema": schema, "name": name},
            )
            if not found:
                missing.append(f"{kind.lower()} {schema}.{name} is missing")
    return missing


def _describe(item: Any) -> str:
    if isinstance(item, list):
        return "; ".join(_describe(part) for part in item)
    operation, *details = item
    names = [
        getattr(detail, "name", None) or str(detail) for detail in details if detail is not None
    ]
    return f"{operation.replace('_', ' ')}: {' '.join(names)}"
