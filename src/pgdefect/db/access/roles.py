"""Who may do what: the roles reader and writer of one database, beside its owner.

The owner is the role that owns the schema ``pgdefect``: the login that ran ``pgdefect db upgrade``.
Reader and writer are roles without login, one pair per database, that logins become members
of (`pgdefect.db.access.logins`). Roles belong to the cluster: no migration makes them, so that a
dump restores where they do not exist; ``pgdefect db role`` makes them, when somebody asks for
them, and ``pgdefect db upgrade`` renews what they may do once they are there.

What this login may not do is left over as statements for an administrator.
"""

from __future__ import annotations

from dataclasses import dataclass

from psycopg import sql
from sqlalchemy import Connection, text

from pgdefect.core.errors import Conflict, PermissionDenied, SchemaOutOfDate
from pgdefect.db.access.audit import record
from pgdefect.db.access.grants import (
    KINDS,
    Scene,
    close_step,
    compose,
    grant_steps,
    holds,
    mark,
    role_steps,
    run_steps,
)
from pgdefect.db.connection.engine import Database, driver


@dataclass(frozen=True)
class SetupReport:
    """The roles of a database, what was done for them, and what an administrator must do.

    Attributes:
        open_databases: others of the server in which any login may make temporary tables.
    """

    database: str
    owner: str
    reader: str
    writer: str
    done: tuple[str, ...]
    for_administrator: tuple[str, ...]
    open_databases: tuple[str, ...]


def setup(database: Database, *, whole_server: bool = False) -> SetupReport:
    """Make reader and writer, and grant and revoke what is missing; again, it does nothing.

    Args:
        whole_server: the server serves pgdefect alone, so that its other databases are closed to
            the logins too.

    Raises:
        SchemaOutOfDate: there is no schema to grant anything on.
        Conflict: a role of that name exists and is not pgdefect's.
    """
    with database.begin() as connection:
        connection.execute(text("SET LOCAL lock_timeout = '30s'"))
        connection.execute(
            text("SELECT pg_advisory_xact_lock(hashtextextended('pgdefect db upgrade', 0))")
        )
        scene = scene_of(connection)
        grants = grant_steps(scene)
        if whole_server:
            grants += [close_step(name) for name in _open_databases(connection)]
        _refuse_strangers(connection, scene)
        done, left = run_steps(driver(connection), role_steps(scene))
        if exist(connection, scene):
            more_done, more_left = run_steps(driver(connection), grants)
            done, left = done + more_done, left + more_left
        else:  # The others can be run by this login once the roles are there.
            left += [step for step in grants if step.administrator]
        raw = driver(connection)
        if done:
            record(connection, "set up roles", "roles", None, {"statements": len(done)})
        return SetupReport(
            scene.database,
            scene.owner,
            scene.role("reader"),
            scene.role("writer"),
            tuple(step.statement.as_string(raw) for step in done),
            tuple(step.statement.as_string(raw) for step in left),
            tuple(_open_databases(connection)),
        )


def renew_grants(connection: Connection) -> None:
    """Grant what new tables, views and functions need, where the roles exist.

    What this login may not do is left as it is; `missing` tells.
    """
    scene = scene_of(connection)
    if exist(connection, scene):
        run_steps(driver(connection), grant_steps(scene))


def missing(connection: Connection) -> list[str]:
    """Statements that the roles of this database lack; none where there are no roles."""
    scene = scene_of(connection)
    if not exist(connection, scene):
        return []
    raw = driver(connection)
    return [
        step.statement.as_string(raw)
        for step in [*role_steps(scene), *grant_steps(scene)]
        if not holds(raw, step)
    ]


def require_owner(database: Database, task: str) -> None:
    """Raises :class:`PermissionDenied` unless this login may make and attach tables.

    Asked before minutes of work, not after.
    """
    with database.connect() as connection:
        row = connection.execute(
            text(
                "SELECT current_user, pg_get_userbyid(c.relowner), "
                "pg_has_role(c.relowner, 'USAGE') "
                "AND has_schema_privilege('pgdefect', 'CREATE') "
                "FROM pg_class c WHERE c.oid = to_regclass('pgdefect.memory_bank_patch')"
            )
        ).one_or_none()
    if row is None or row[2]:
        return
    raise PermissionDenied(
        f"{task} makes and drops tables, which only the owner of the schema may: {row[1]!r}. "
        f"This login is {row[0]!r}. Log in as the owner, or have the owner's role granted to it"
    )


def scene_of(connection: Connection) -> Scene:
    """Raises :class:`SchemaOutOfDate` where the database has no schema of pgdefect's."""
    row = connection.execute(
        text("""
        SELECT current_database(), pg_get_userbyid(n.nspowner), v.nspname,
               (SELECT jsonb_object_agg(c.relname, ARRAY(
                    SELECT a.attname FROM pg_attribute a
                    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
                    ORDER BY a.attnum))
                FROM pg_class c
                WHERE c.relnamespace = n.oid AND c.relkind IN ('r', 'p') AND NOT c.relispartition)
        FROM pg_namespace n
        JOIN pg_extension e ON e.extname = 'vector'
        JOIN pg_namespace v ON v.oid = e.extnamespace
        WHERE n.nspname = 'pgdefect' AND to_regnamespace('defect') IS NOT NULL""")
    ).one_or_none()
    if row is None:
        raise SchemaOutOfDate("the database has no schema of pgdefect's. Run: pgdefect db upgrade")
    columns = {name: tuple(row[3][name]) for name in sorted(row[3])}
    return Scene(row[0], row[1], row[2], columns)


def exist(connection: Connection, scene: Scene) -> bool:
    """Whether both roles are there, made for this database."""
    return all(
        connection.scalar(
            text(
                "SELECT shobj_description(oid, 'pg_authid') = :mark FROM pg_roles "
                "WHERE rolname = :name"
            ),
            {"name": scene.role(kind), "mark": mark(scene.database, kind)},
        )
        for kind in KINDS
    )


def _refuse_strangers(connection: Connection, scene: Scene) -> None:
    for kind in KINDS:
        name, comment = scene.role(kind), mark(scene.database, kind)
        row = connection.execute(
            text(
                "SELECT shobj_description(oid, 'pg_authid') IS DISTINCT FROM :mark, "
                "rolcanlogin OR rolsuper FROM pg_roles WHERE rolname = :name"
            ),
            {"name": name, "mark": comment},
        ).one_or_none()
        if row is not None and any(row):
            command = compose("COMMENT ON ROLE {} IS {}", sql.Identifier(name), comment)
            raise Conflict(
                f"a role {name!r} exists already, which pgdefect did not make or which may log "
                f"in. Rename it; or make it the {kind} of this database: take LOGIN from it and "
                f"run {command.as_string(driver(connection))}"
            )


def _open_databases(connection: Connection) -> list[str]:
    """Other databases in which any login may make temporary tables, which no limit bounds."""
    return list(
        connection.scalars(
            text("""
            SELECT d.datname::text FROM pg_database d
            WHERE d.datallowconn AND d.datname <> current_database() AND (
                SELECT count(DISTINCT a.privilege_type)
                FROM aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) a
                WHERE a.grantee = 0 AND a.privilege_type IN ('CONNECT', 'TEMPORARY')) = 2
            ORDER BY 1""")
        )
    )
