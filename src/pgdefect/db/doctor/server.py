"""The server: versions, the schema's state, memory, disk, and who may do what."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import Connection, text

from pgdefect.core.wording import blank, command
from pgdefect.db.access.logins import logins_of
from pgdefect.db.access.roles import exist, missing, scene_of
from pgdefect.db.connection.engine import Database
from pgdefect.db.doctor.findings import Finding, fix_command, psql, size
from pgdefect.db.schema.schema import check as compare
from pgdefect.db.server.embedded import LOG_LIMIT, EmbeddedServer

LOW_DISK = 256 << 20
SCARCE_DISK = 2 << 30
SHARED_MEMORY_MARGIN = 64 << 20
NOTIFICATIONS = 0.1
"""Share of the notification queue from which on it is worth a word."""


def check_schema(database: Database) -> Iterator[Finding]:
    """Revision, tables, functions and views against the code's."""
    report = compare(database)
    for difference in report.differences:
        yield Finding("fault", "schema", "database", difference, "pgdefect db upgrade")


def check_extension(connection: Connection) -> Iterator[Finding]:
    """A pgvector older than the one the server has at hand."""
    row = connection.execute(
        text(
            "SELECT e.extversion, a.default_version FROM pg_extension e "
            "JOIN pg_available_extensions a ON a.name = e.extname WHERE e.extname = 'vector'"
        )
    ).one_or_none()
    if row is not None and row[0] != row[1]:
        yield Finding(
            "warning",
            "extension",
            "vector",
            f"the database has pgvector {row[0]} and the server {row[1]}",
            psql("ALTER EXTENSION vector UPDATE"),
        )


def check_memory(connection: Connection) -> Iterator[Finding]:
    """Memory settings against the largest HNSW index: searching it, and building it."""
    name, largest = largest_index(connection)
    if name is None:
        return
    for setting, meaning, restart in (
        ("shared_buffers", "searches read it from outside Postgres's memory", True),
        ("effective_cache_size", "the planner takes it for being on disk", False),
        ("maintenance_work_mem", "a build of it runs out of memory and continues slowly", False),
    ):
        value = connection.scalar(
            text("SELECT pg_size_bytes(current_setting(:name))"), {"name": setting}
        )
        if value is None or value >= largest:
            continue
        wanted = f"{1 << max(0, (largest - 1 >> 20).bit_length())}MB"
        remedy = psql(f"ALTER SYSTEM SET {setting} = '{wanted}'")
        yield Finding(
            "warning",
            "memory",
            setting,
            f"{size(value)}, and the index {name} has {size(largest)}: {meaning}",
            f"{remedy}, then restart the server"
            if restart
            else f"{remedy} -c 'SELECT pg_reload_conf()'",
        )


def check_shared_memory(connection: Connection, available: int) -> Iterator[Finding]:
    """Parallel HNSW builds share maintenance_work_mem through /dev/shm, small in containers.

    Args:
        available: bytes of the server's /dev/shm.
    """
    row = connection.execute(
        text(
            "SELECT current_setting('dynamic_shared_memory_type'), "
            "current_setting('max_parallel_maintenance_workers')::integer, "
            "pg_size_bytes(current_setting('maintenance_work_mem'))"
        )
    ).one()
    kind, workers, memory = row
    if kind == "posix" and workers > 0 and available < memory + SHARED_MEMORY_MARGIN:
        yield Finding(
            "warning",
            "shared-memory",
            "/dev/shm",
            f"{size(available)}, and a parallel index build shares maintenance_work_mem, "
            f"{size(memory)}, through it: such builds fail, and training falls back to one process",
            f"start the container with --shm-size={(memory + SHARED_MEMORY_MARGIN >> 20) + 1}m; or "
            + psql("ALTER SYSTEM SET max_parallel_maintenance_workers = 0")
            + " -c 'SELECT pg_reload_conf()'",
        )


def check_disk(connection: Connection, path: str, free: int) -> Iterator[Finding]:
    """Space for what comes next; free: bytes left where the server keeps its data."""
    total = connection.scalar(text("SELECT pg_database_size(current_database())")) or 0
    _, largest = largest_index(connection)
    needed = max(SCARCE_DISK, 2 * largest)
    if free < needed:
        yield Finding(
            "fault" if free < LOW_DISK else "warning",
            "disk",
            path,
            f"{size(free)} are free beside a database of {size(total)}; "
            + (
                "the server is about to stop taking writes"
                if free < LOW_DISK
                else f"rebuilding an index and its logs may need {size(needed)}"
            ),
            "pgdefect detectors shows what is large; "
            f"{command('delete', detector=blank('N'), yes=True)} frees it",
        )


def check_roles(connection: Connection) -> Iterator[Finding]:
    """Rights that reader and writer lack or have too many of, where there are such roles."""
    scene = scene_of(connection)
    if not exist(connection, scene):
        return
    lacking = missing(connection)
    if lacking:
        first = " ".join(lacking[0].split())
        yield Finding(
            "warning",
            "roles",
            scene.role("reader"),
            f"{len(lacking)} of the statements that bound readers and writers are not in force, "
            f"first: {first[:90]}…",
            "pgdefect db role setup",
        )
    for login in logins_of(connection):
        if login.kind in ("reader", "writer") and login.beyond:
            yield Finding(
                "warning",
                "roles",
                login.name,
                f"a {login.kind} with more rights than one: {', '.join(login.beyond)}",
                "pgdefect db role list",
            )


def check_log(path: Path) -> Iterator[Finding]:
    """The embedded server's log, where it grew past what is kept of it."""
    try:
        length = path.lstat().st_size
    except OSError:
        return
    if length > LOG_LIMIT:
        yield Finding(
            "warning",
            "log",
            str(path),
            f"{size(length)}, more than the {size(LOG_LIMIT)} that are kept: somebody floods it",
            fix_command(),
            lambda database: _rotate(path),
        )


def _rotate(path: Path) -> None:
    EmbeddedServer(path.parent).rotate_log()


def check_log_settings(connection: Connection) -> Iterator[Finding]:
    """Readers and writers who may fill the server's log with RAISE."""
    if not exist(connection, scene_of(connection)):
        return
    for login in logins_of(connection):
        if not login.can_login or login.kind == "owner":
            continue
        settings = connection.scalar(
            text(
                "SELECT coalesce(s.setconfig, '{}') FROM pg_roles r LEFT JOIN pg_db_role_setting s "
                "ON s.setrole = r.oid AND s.setdatabase = 0 WHERE r.rolname = :name"
            ),
            {"name": login.name},
        )
        if "log_min_messages=fatal" not in (settings or []):
            name = login.name.replace('"', '""')
            yield Finding(
                "warning",
                "log-setting",
                login.name,
                "what this login raises goes into the server's log, and may fill the disk",
                psql(f'ALTER ROLE "{name}" SET log_min_messages = fatal'),
            )


def check_notifications(connection: Connection) -> Iterator[Finding]:
    """Notifications that a listener in an open transaction keeps from being removed."""
    share = connection.scalar(text("SELECT pg_notification_queue_usage()")) or 0.0
    if share > NOTIFICATIONS:
        yield Finding(
            "warning",
            "notifications",
            "pg_notify",
            f"{share:.0%} of the queue is in use: pgdefect sends none, and a session that listens "
            "within a transaction keeps them",
            psql("SELECT pid, usename, query FROM pg_stat_activity WHERE xact_start IS NOT NULL"),
        )


def largest_index(connection: Connection) -> tuple[str | None, int]:
    """Name and bytes of the largest HNSW index."""
    row = connection.execute(
        text("""
        SELECT c.relname, pg_relation_size(c.oid) FROM pg_class c JOIN pg_am m ON m.oid = c.relam
        WHERE c.relnamespace = 'pgdefect'::regnamespace AND m.amname = 'hnsw' AND c.relkind = 'i'
        ORDER BY 2 DESC LIMIT 1""")
    ).one_or_none()
    return (None, 0) if row is None else (row[0], row[1])
