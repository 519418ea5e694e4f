"""Logins that are readers or writers of a database: adding, listing, dropping."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy import Connection, text

from pgdefect.core.errors import Conflict, NotFound, PermissionDenied, UsageError
from pgdefect.db.access.audit import record
from pgdefect.db.access.grants import (
    KINDS,
    NAME_BYTES,
    Kind,
    Scene,
    Step,
    compose,
    member_step,
    run_steps,
)
from pgdefect.db.access.roles import exist, scene_of
from pgdefect.db.connection.engine import Database, driver

CONNECTIONS: dict[Kind, int] = {"reader": 10, "writer": 20}
_BOUNDS = {"temp_file_limit": "2GB", "log_min_messages": "fatal"}
LIMITS: dict[Kind, dict[str, str]] = {"reader": _BOUNDS, "writer": _BOUNDS}
"""Settings of a login that it cannot change itself: bytes for each of its sessions; and what it
writes into the server's log, which RAISE would fill otherwise."""
COURTESIES: dict[Kind, dict[str, str]] = {
    "reader": {
        "statement_timeout": "5min",
        "idle_in_transaction_session_timeout": "10min",
        "work_mem": "64MB",
        "default_transaction_read_only": "on",
    },
    "writer": {"idle_in_transaction_session_timeout": "10min"},
}
"""Settings that guard against mistakes: any session may set them otherwise."""


@dataclass(frozen=True)
class LoginReport:
    """A login that was added, or what an administrator must run for it to be complete."""

    name: str
    kind: Kind
    made: bool
    for_administrator: tuple[str, ...]


@dataclass(frozen=True)
class Login:
    """A role that may use the database; its limits as they are set, None for none.

    Attributes:
        connections: sessions open now.
        beyond: what it may do beyond its kind.
    """

    name: str
    kind: str
    can_login: bool
    connections: int
    connection_limit: int | None
    temp_file_limit: str | None
    statement_timeout: str | None
    beyond: tuple[str, ...]


def add_login(
    database: Database,
    name: str,
    kind: Kind,
    password: str | None,
    *,
    connection_limit: int | None = None,
) -> LoginReport:
    """Make a login that is a reader or writer, with its limits; `roles.setup` comes first.

    The password leaves this process as a SCRAM verifier only; without one the login needs
    another way to prove itself (a certificate, the operating system).

    Raises:
        UsageError: Postgres does not take such a name or password.
        Conflict: a role of that name exists.
    """
    check_name(name)
    limit = CONNECTIONS[kind] if connection_limit is None else connection_limit
    with database.begin() as connection:
        raw = driver(connection)
        scene = scene_of(connection)
        if not exist(connection, scene):
            raise NotFound("the database has no roles yet; make them with: pgdefect db role setup")
        if connection.scalar(text("SELECT to_regrole(quote_ident(:n))"), {"n": name}) is not None:
            raise Conflict(
                f"the role {name!r} exists already. Drop it with: pgdefect db role drop; or make "
                f"it a {kind} as it is: " + _member(scene, kind, name).statement.as_string(raw)
            )
        steps = login_steps(scene, name, kind, limit)
        secret = (
            sql.SQL("")
            if password is None
            else sql.SQL(" PASSWORD ") + _verifier(raw, name, password)
        )
        _keep_out_of_logs(raw)
        try:
            with raw.transaction():
                raw.execute(sql.Composed([steps[0].statement, secret]))
        except psycopg.errors.InsufficientPrivilege:
            statements = [step.statement.as_string(raw) for step in steps]
            if password is not None:
                statements.append(
                    f"\\password {compose('{}', sql.Identifier(name)).as_string(raw)}"
                )
            return LoginReport(name, kind, False, tuple(statements))
        _, left = run_steps(raw, steps[1:])
        record(connection, "add login", f"login {name}", None, {"kind": kind, "limit": limit})
        return LoginReport(name, kind, True, tuple(step.statement.as_string(raw) for step in left))


def login_steps(scene: Scene, name: str, kind: Kind, connection_limit: int) -> list[Step]:
    """The login, its membership, its settings; the first is to be given a password."""
    steps = [
        Step(
            compose(
                "CREATE ROLE {} LOGIN CONNECTION LIMIT {}", sql.Identifier(name), connection_limit
            ),
            compose("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = {})", name),
            administrator=True,
        ),
        _member(scene, kind, name),
    ]
    for setting, value in (LIMITS[kind] | COURTESIES[kind]).items():
        steps.append(
            Step(
                compose(f"ALTER ROLE {{}} SET {setting} = {{}}", sql.Identifier(name), value),
                compose(
                    "SELECT EXISTS (SELECT FROM pg_db_role_setting s "
                    "JOIN pg_roles r ON r.oid = s.setrole "
                    "WHERE s.setdatabase = 0 AND r.rolname = {} AND {} = ANY (s.setconfig))",
                    name,
                    f"{setting}={value}",
                ),
                administrator=True,
            )
        )
    return steps


def list_logins(database: Database) -> list[Login]:
    """The owner, the roles, and every login that is a member of one, by kind and name."""
    with database.connect() as connection:
        return logins_of(connection)


def logins_of(connection: Connection) -> list[Login]:
    scene = scene_of(connection)
    groups: dict[str, str] = {scene.role(kind): kind for kind in KINDS}
    rows = driver(connection).execute(
        """
        SELECT r.rolname, r.rolname = %(owner)s,
               (SELECT g.rolname FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid
                WHERE m.member = r.oid AND g.rolname = ANY (%(groups)s)
                ORDER BY g.rolname = %(writer)s DESC LIMIT 1),
               r.rolcanlogin,
               (SELECT count(*) FROM pg_stat_activity a WHERE a.usesysid = r.oid),
               nullif(r.rolconnlimit, -1),
               setting.of->>'temp_file_limit', setting.of->>'statement_timeout',
               array_remove(ARRAY[
                   CASE WHEN r.rolsuper THEN 'superuser' END,
                   CASE WHEN r.rolcreaterole THEN 'may make roles' END,
                   CASE WHEN r.rolcreatedb THEN 'may make databases' END,
                   CASE WHEN r.rolreplication THEN 'replication' END], NULL)
               || ARRAY(SELECT 'member of ' || g.rolname
                        FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid
                        WHERE m.member = r.oid AND g.rolname <> ALL (%(groups)s) ORDER BY 1)
        FROM pg_roles r
        LEFT JOIN LATERAL (
            SELECT jsonb_object_agg(split_part(c, '=', 1), substr(c, strpos(c, '=') + 1)) AS of
            FROM pg_db_role_setting s, unnest(s.setconfig) c
            WHERE s.setrole = r.oid AND s.setdatabase = 0
        ) setting ON true
        WHERE r.rolname = %(owner)s OR r.rolname = ANY (%(groups)s)
           OR EXISTS (SELECT FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid
                      WHERE m.member = r.oid AND g.rolname = ANY (%(groups)s))
        """,
        {
            "owner": scene.owner,
            "groups": list(groups),
            "writer": scene.role("writer"),
        },
    )
    found = []
    for name, is_owner, group, can_login, sessions, limit, disk, timeout, beyond in rows:
        kind = "owner" if is_owner else groups[name] if name in groups else groups[group]
        more = () if is_owner else tuple(beyond)
        found.append(Login(name, kind, can_login, sessions, limit, disk, timeout, more))
    order = ("owner", "writer", "reader")
    return sorted(found, key=lambda one: (order.index(one.kind), one.can_login, one.name))


def drop_login(database: Database, name: str) -> int:
    """Drop a reader's or writer's login and end its sessions; returns how many stay open.

    Raises:
        NotFound: it is no login of this database; the message lists those there are.
        Conflict: it owns something, or may do something elsewhere.
    """
    with database.begin() as connection:
        raw = driver(connection)
        kinds = {
            one.name: one.kind
            for one in logins_of(connection)
            if one.can_login and one.kind != "owner"
        }
        if name not in kinds:
            listing = ", ".join(kinds) if kinds else "there is none"
            raise NotFound(f"{name!r} is no reader's or writer's login of this database: {listing}")
        try:
            with raw.transaction():
                raw.execute(compose("DROP ROLE {}", sql.Identifier(name)))
        except psycopg.errors.DependentObjectsStillExist as error:
            quoted = compose("{}", sql.Identifier(name)).as_string(raw)
            raise Conflict(
                f"{name!r} owns something or was granted something by name: "
                f"{error.diag.message_detail}. In each database it says, run REASSIGN OWNED BY "
                f"{quoted} TO the owner; DROP OWNED BY {quoted}. Then drop it again"
            ) from error
        except psycopg.errors.InsufficientPrivilege as error:
            statement = compose("DROP ROLE {}", sql.Identifier(name)).as_string(raw)
            raise PermissionDenied(
                f"this login may not drop {name!r}; have an administrator run: {statement}"
            ) from error
        record(connection, "drop login", f"login {name}", {"kind": kinds[name]}, None)
    return _end_sessions(database)


def _end_sessions(database: Database) -> int:
    """End sessions of roles that are no longer; returns how many this login may not end."""
    orphaned = (
        "FROM pg_stat_activity a WHERE a.usesysid IS NOT NULL AND a.datname = current_database() "
        "AND NOT EXISTS (SELECT FROM pg_roles r WHERE r.oid = a.usesysid)"
    )
    with database.autocommit() as connection:
        with suppress(psycopg.errors.InsufficientPrivilege):
            connection.execute(f"SELECT pg_terminate_backend(a.pid, 2000) {orphaned}")
        row = connection.execute(f"SELECT count(*) {orphaned}").fetchone()
    assert row is not None
    return int(row[0])


def check_name(name: str) -> None:
    """Raises UsageError for what Postgres takes for no role's name, or for another's."""
    if (
        not 1 <= len(name.encode()) <= NAME_BYTES
        or not name.isprintable()
        or name != name.strip()
        or name.startswith("pg_")
        or name in ("public", "none")
    ):
        raise UsageError(
            f"a login's name has 1 to {NAME_BYTES} bytes of printable characters, no space at its "
            f"ends and no pg_ before it, not {name!r}"
        )


def _member(scene: Scene, kind: Kind, name: str) -> Step:
    return member_step(scene.role(kind), name)


def _verifier(raw: psycopg.Connection[Any], name: str, password: str) -> sql.Literal:
    if not password or "\0" in password or "\n" in password:
        raise UsageError("a password has at least one character and no line break")
    encrypted = raw.pgconn.encrypt_password(password.encode(), name.encode(), b"scram-sha-256")
    return sql.Literal(encrypted.decode())


def _keep_out_of_logs(raw: psycopg.Connection[Any]) -> None:
    """Ask the server to log no statement of this transaction, where that is ours to ask."""
    with suppress(psycopg.errors.InsufficientPrivilege), raw.transaction():
        raw.execute("SET LOCAL log_statement = 'none'")
        raw.execute("SET LOCAL log_min_duration_statement = -1")
        raw.execute("SET LOCAL log_min_error_statement = 'panic'")
    # Without the extension this sets nothing.
    with suppress(psycopg.errors.InsufficientPrivilege), raw.transaction():
        raw.execute("SET LOCAL pg_stat_statements.track_utility = off")
