"""The rights of reader and writer, one `Step` each: a statement, and whether it is needed.

Desired state, not history: steps are run again after every upgrade, and what holds already is
left alone. `pgdefect.db.access.roles` runs them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import psycopg
from psycopg import sql

Kind = Literal["reader", "writer"]
KINDS: tuple[Kind, ...] = ("reader", "writer")
NAME_BYTES = 63
"""The longest name Postgres keeps (NAMEDATALEN - 1)."""


@dataclass(frozen=True)
class AllBut:
    """The columns of a table but these, whatever a later version adds."""

    columns: frozenset[str]


Columns = AllBut | tuple[str, ...]
_SERVERS_OWN = AllBut(
    frozenset(
        {"id", "created_at", "is_anomalous", "reviewed_label", "reviewed_defect_type"}
        | {"known_label", "known_defect_type"}
    )
)
"""Numbers, times and what follows from reviews and scores: the server writes them alone."""

WRITER_MAY: dict[str, dict[str, Columns]] = {
    "category": {
        "INSERT": AllBut(_SERVERS_OWN.columns | {"retired_at"}),
        "UPDATE": ("gray_scale", "gray_scale_settled"),
    },
    "image_root": {"INSERT": ("path",)},
    "image": {"INSERT": _SERVERS_OWN, "UPDATE": _SERVERS_OWN},
    "image_embedding": {"INSERT": AllBut(frozenset())},
    "image_patches": {"INSERT": AllBut(frozenset()), "UPDATE": AllBut(frozenset())},
    # Scores are never changed; what its neighbors say of a defect is found a moment later.
    "inspection": {
        "INSERT": AllBut(_SERVERS_OWN.columns | {"inspected_at", "event"}),
        "UPDATE": ("vote", "probable_defect_type"),
    },
    "inspection_run": {"INSERT": AllBut(frozenset()), "DELETE": ()},
    "detector": {"UPDATE": ("metrics",)},
    "evaluation": {"INSERT": _SERVERS_OWN},
    # Made anew from the image and its inspection when it is inspected again.
    "defect_embedding": {op: AllBut(frozenset()) for op in ("INSERT", "UPDATE")} | {"DELETE": ()},
    "defect_region": {op: AllBut(frozenset()) for op in ("INSERT", "UPDATE")} | {"DELETE": ()},
}
"""What a line station writes: it adds and corrects, and deletes nothing that was judged.

Table of schema ``pgdefect`` (those there are) → privilege → its columns. Every other table is the
owner's: banks, extractors and networks, held-out scores, the audit trail, and what the schema says
of itself. Thresholds and reviews are written by functions alone (`WRITER_CALLS`), which take the
author from the session and the time from the server.
"""

WRITER_CALLS = {"rejudge", "review", "set_threshold", "withdraw_review"}
"""Functions of schema ``defect`` that write."""

_ADVISORY = "^pg_(try_)?advisory_"
_DISK = "^(lo_(creat|create|from_bytea|put|unlink|truncate|truncate64)|lowrite)$"
_LOG = "^pg_logical_emit_message$"


class Step(NamedTuple):
    """A statement, and a query that is true once it need not be run.

    Attributes:
        administrator: usually only a superuser or a role with CREATEROLE can run it.
    """

    statement: sql.Composed
    holds: sql.Composed
    administrator: bool = False


@dataclass(frozen=True)
class Scene:
    """What names the steps are written with."""

    database: str
    owner: str
    vector_schema: str
    tables: Mapping[str, tuple[str, ...]]
    """Each table of schema ``pgdefect`` that is no partition, with its columns."""

    def role(self, kind: Kind) -> str:
        return group_name(self.database, kind)


def group_name(database: str, kind: Kind) -> str:
    """The role's name: the database's before it, shortened with a checksum where too long."""
    suffix = f"_{kind}"
    # Postgres keeps names that begin with pg_ for itself.
    if not database.startswith("pg_") and len((database + suffix).encode()) <= NAME_BYTES:
        return database + suffix
    suffix = f"_{hashlib.sha256(database.encode()).hexdigest()[:8]}{suffix}"
    prefix = "db_" if database.startswith("pg_") else ""
    room = NAME_BYTES - len(prefix) - len(suffix)
    return prefix + database.encode()[:room].decode(errors="ignore") + suffix


def mark(database: str, kind: Kind) -> str:
    """The comment that tells a role of ours from another one of the same name."""
    return f"pgdefect: {kind} of the database {database}"


def role_steps(scene: Scene) -> list[Step]:
    """Make the roles, and let the owner add members to them."""
    steps = []
    for kind in KINDS:
        role, comment = scene.role(kind), mark(scene.database, kind)
        steps += [
            Step(
                compose("CREATE ROLE {}", sql.Identifier(role)),
                compose("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = {})", role),
                administrator=True,
            ),
            Step(
                compose("COMMENT ON ROLE {} IS {}", sql.Identifier(role), comment),
                compose(
                    "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = {} "
                    "AND shobj_description(oid, 'pg_authid') = {})",
                    role,
                    comment,
                ),
                administrator=True,
            ),
            Step(
                compose(
                    "GRANT {} TO {} WITH ADMIN OPTION",
                    sql.Identifier(role),
                    sql.Identifier(scene.owner),
                ),
                compose(
                    "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = {} AND rolsuper) "
                    "OR EXISTS (SELECT FROM pg_auth_members WHERE pg_get_userbyid(roleid) = {} "
                    "AND pg_get_userbyid(member) = {} AND admin_option)",
                    scene.owner,
                    role,
                    scene.owner,
                ),
                administrator=True,
            ),
        ]
    steps.append(member_step(scene.role("reader"), scene.role("writer")))
    return steps


def member_step(role: str, member: str) -> Step:
    """Make one role a member of another."""
    return Step(
        compose("GRANT {} TO {}", sql.Identifier(role), sql.Identifier(member)),
        compose(
            "SELECT EXISTS (SELECT FROM pg_auth_members WHERE pg_get_userbyid(roleid) = {} "
            "AND pg_get_userbyid(member) = {})",
            role,
            member,
        ),
        administrator=True,
    )


def grant_steps(scene: Scene) -> list[Step]:
    """What the roles may do, and what everybody may no longer."""
    return [
        *_database_steps(scene),
        *_schema_steps(scene),
        *_table_steps(scene),
        *_function_steps(scene),
        *_server_function_steps(scene),
    ]


def _database_steps(scene: Scene) -> list[Step]:
    name, reader, writer = scene.database, scene.role("reader"), scene.role("writer")
    acl = (
        "EXISTS (SELECT FROM pg_database d, "
        "aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) a WHERE d.datname = {} "
        "AND a.grantee = {} AND a.privilege_type = ANY ({}))"
    )
    everybody = sql.Literal(0)

    def granted(privilege: str, role: str) -> Step:
        return Step(
            compose(
                f"GRANT {privilege} ON DATABASE {{}} TO {{}}",
                sql.Identifier(name),
                sql.Identifier(role),
            ),
            compose(f"SELECT {acl}", name, _oid(role), [privilege]),
        )

    return [
        # Said for each, so that an administrator may take it from everybody else.
        granted("CONNECT", reader),
        # Image embeddings reach their table through a temporary one.
        granted("TEMPORARY", writer),
        granted("TEMPORARY", scene.owner),
        Step(
            compose("REVOKE CREATE, TEMPORARY ON DATABASE {} FROM PUBLIC", sql.Identifier(name)),
            compose(f"SELECT NOT {acl}", name, everybody, ["CREATE", "TEMPORARY"]),
        ),
    ]


def _schema_steps(scene: Scene) -> list[Step]:
    reader = scene.role("reader")
    schemas = ["pgdefect", "defect", scene.vector_schema]
    steps = [
        Step(
            compose(
                "GRANT USAGE ON SCHEMA {} TO {}", sql.Identifier(schema), sql.Identifier(reader)
            ),
            compose("SELECT has_schema_privilege({}, {}, 'USAGE')", reader, schema),
        )
        for schema in schemas
    ]
    # Databases that come from Postgres 14 or older let everybody make tables in it.
    steps.append(
        Step(
            compose("REVOKE CREATE ON SCHEMA public FROM PUBLIC"),
            compose(
                "SELECT NOT EXISTS (SELECT FROM pg_namespace n, "
                "aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) a "
                "WHERE n.nspname = 'public' AND a.grantee = 0 AND a.privilege_type = 'CREATE')"
            ),
        )
    )
    return steps


def _table_steps(scene: Scene) -> list[Step]:
    reader, writer, owner = scene.role("reader"), scene.role("writer"), scene.owner
    steps = []
    for schema in ("pgdefect", "defect"):
        steps += [
            Step(
                compose(
                    "GRANT SELECT ON ALL TABLES IN SCHEMA {} TO {}",
                    sql.Identifier(schema),
                    sql.Identifier(reader),
                ),
                compose(
                    "SELECT NOT EXISTS (SELECT FROM pg_class "
                    "WHERE relnamespace = {}::regnamespace "
                    "AND relkind IN ('r', 'p', 'v') "
                    "AND NOT has_table_privilege({}, oid, 'SELECT'))",
                    schema,
                    reader,
                ),
            ),
            # Partitions made at run time, and what a later version brings.
            Step(
                compose(
                    "ALTER DEFAULT PRIVILEGES FOR ROLE {} IN SCHEMA {} "
                    "GRANT SELECT ON TABLES TO {}",
                    sql.Identifier(owner),
                    sql.Identifier(schema),
                    sql.Identifier(reader),
                ),
                compose(
                    "SELECT EXISTS (SELECT FROM pg_default_acl d, aclexplode(d.defaclacl) a "
                    "WHERE d.defaclrole = {} AND d.defaclnamespace = {}::regnamespace "
                    "AND d.defaclobjtype = 'r' AND a.grantee = {} AND a.privilege_type = 'SELECT')",
                    _oid(owner),
                    schema,
                    _oid(reader),
                ),
            ),
        ]
    for table, columns in scene.tables.items():
        steps += _writer_steps(writer, table, columns)
    # Identity columns need no right on their sequence; a default that names one does.
    steps.append(
        Step(
            compose(
                "GRANT USAGE ON ALL SEQUENCES IN SCHEMA pgdefect TO {}", sql.Identifier(writer)
            ),
            compose(
                "SELECT NOT EXISTS (SELECT FROM pg_sequence s "
                "JOIN pg_class c ON c.oid = s.seqrelid "
                "WHERE c.relnamespace = 'pgdefect'::regnamespace "
                "AND NOT has_sequence_privilege({}, s.seqrelid, 'USAGE'))",
                writer,
            ),
        )
    )
    return steps


def _writer_steps(writer: str, table: str, columns: tuple[str, ...]) -> Iterator[Step]:
    """Take from a table what a writer was given beyond `WRITER_MAY`, and give it what is there."""
    allowed = {
        privilege: tuple(
            column
            for column in columns
            if (column not in some.columns if isinstance(some, AllBut) else column in some)
        )
        for privilege, some in WRITER_MAY.get(table, {}).items()
    }
    whole = [privilege for privilege, some in allowed.items() if set(some) in ({*columns}, set())]
    held = (
        "(SELECT a.privilege_type, NULL::name AS attname FROM pg_class c, aclexplode(c.relacl) a "
        "WHERE c.oid = {table}::regclass AND a.grantee = {role} "
        "UNION ALL SELECT a.privilege_type, t.attname FROM pg_attribute t, aclexplode(t.attacl) a "
        "WHERE t.attrelid = {table}::regclass AND a.grantee = {role}) held"
    )
    names = {"table": sql.Literal(f"pgdefect.{table}"), "role": _oid(writer)}
    columns_of = [
        f"{privilege} {column}"
        for privilege, some in allowed.items()
        if privilege not in whole
        for column in some
    ]
    yield Step(
        compose("REVOKE ALL ON pgdefect.{} FROM {}", sql.Identifier(table), sql.Identifier(writer)),
        sql.SQL(
            "SELECT NOT EXISTS (SELECT FROM " + held + " WHERE CASE WHEN attname IS NULL "
            "THEN privilege_type <> ALL ({whole}::text[]) "
            "ELSE privilege_type || ' ' || attname <> ALL ({columns}::text[]) END)"
        ).format(whole=sql.Literal(whole), columns=sql.Literal(columns_of), **names),
    )
    for privilege, some in allowed.items():
        listed = sql.SQL(", ").join(map(sql.Identifier, some))
        yield Step(
            sql.SQL("GRANT {}{} ON pgdefect.{} TO {}").format(
                sql.SQL(privilege),
                sql.SQL("") if privilege in whole else sql.SQL(" ({})").format(listed),
                sql.Identifier(table),
                sql.Identifier(writer),
            ),
            compose(
                "SELECT has_table_privilege({}, {}, {})",
                writer,
                f"pgdefect.{table}",
                privilege,
            )
            if privilege in whole
            else compose(
                "SELECT bool_and(has_column_privilege({}, {}, column_name, {})) "
                "FROM unnest({}::text[]) column_name",
                writer,
                f"pgdefect.{table}",
                privilege,
                list(some),
            ),
        )


def _function_steps(scene: Scene) -> list[Step]:
    """Functions that write are the writer's, all others the reader's too.

    A reader who calls one that is missing in `WRITER_CALLS` is refused the tables it writes to;
    one that acts with its owner's rights is therefore never a reader's.
    """
    reader, writer = scene.role("reader"), scene.role("writer")
    ours = "pronamespace IN ('pgdefect'::regnamespace, 'defect'::regnamespace)"
    names = ", ".join(f"'{name}'" for name in sorted(WRITER_CALLS))
    writing = f"(prosecdef OR proname IN ({names}))"
    return [
        _grant_execute(f"{ours} AND NOT {writing}", reader),
        _grant_execute(ours, writer),
        _revoke_execute(f"{ours} AND {writing}"),
    ]


def _server_function_steps(scene: Scene) -> list[Step]:
    """Functions of Postgres that everybody may call, by which a reader could stop or fill it."""
    system = "pronamespace = 'pg_catalog'::regnamespace AND proname"
    return [
        *(
            _grant_execute(f"{system} ~ '{_ADVISORY}'", role, administrator=True)
            for role in (scene.owner, scene.role("writer"))
        ),
        _revoke_execute(f"{system} ~ '{_ADVISORY}|{_DISK}|{_LOG}'", administrator=True),
    ]


_EXECUTE_BY = """EXISTS (
        SELECT FROM aclexplode(coalesce(proacl, acldefault('f', proowner))) a
        WHERE a.grantee = {} AND a.privilege_type = 'EXECUTE')"""


def _grant_execute(which: str, role: str, *, administrator: bool = False) -> Step:
    """EXECUTE on functions by name, which lasts when everybody loses it."""
    lacking = compose(f"{which} AND NOT {_EXECUTE_BY}", _oid(role))
    return _for_functions("GRANT EXECUTE ON FUNCTION %s TO %I", lacking, role, administrator)


def _revoke_execute(which: str, *, administrator: bool = False) -> Step:
    lacking = compose(f"{which} AND {_EXECUTE_BY}", sql.Literal(0))
    return _for_functions("REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC", lacking, "", administrator)


def _for_functions(action: str, lacking: sql.Composed, role: str, administrator: bool) -> Step:
    """One statement for all functions that still lack it, whatever this server's are called."""
    body = compose(
        f"""
DECLARE f regprocedure;
BEGIN
    FOR f IN SELECT oid FROM pg_proc WHERE {{}} LOOP
        EXECUTE format('{action}', f, {{}});
    END LOOP;
END """,
        lacking,
        role,
    )
    quotes = "$do$"
    while quotes in role:
        quotes = f"$x{quotes[1:]}"
    return Step(
        compose(f"DO {quotes}{{}}{quotes}", body),
        compose("SELECT NOT EXISTS (SELECT FROM pg_proc WHERE {})", lacking),
        administrator,
    )


def close_step(name: str) -> Step:
    """Close another database to every login that was not let in by name."""
    return Step(
        compose("REVOKE CONNECT, TEMPORARY ON DATABASE {} FROM PUBLIC", sql.Identifier(name)),
        compose(
            "SELECT NOT EXISTS (SELECT FROM pg_database d, "
            "aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) a "
            "WHERE d.datname = {} AND a.grantee = 0)",
            name,
        ),
        administrator=True,
    )


def run_steps(raw: psycopg.Connection[Any], steps: Iterable[Step]) -> tuple[list[Step], list[Step]]:
    """Run those steps that do not hold: the ones done, and the ones this login may not do."""
    done: list[Step] = []
    left: list[Step] = []
    for step in steps:
        if holds(raw, step):
            continue
        try:
            with raw.transaction():
                raw.execute(step.statement)
        except (psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedObject):
            # The second: a role that an earlier step was not allowed to make.
            left.append(step)
            continue
        # Who may not grant something gets a warning as often as an error.
        (done if holds(raw, step) else left).append(step)
    return done, left


def holds(raw: psycopg.Connection[Any], step: Step) -> bool:
    row = raw.execute(step.holds).fetchone()
    return row is not None and bool(row[0])


def compose(statement: str, *parts: object) -> sql.Composed:
    """A statement with names and values in its braces."""
    composed = [part if isinstance(part, sql.Composable) else sql.Literal(part) for part in parts]
    return sql.SQL(statement).format(*composed)


def _oid(role: str) -> sql.Composed:
    return compose("(SELECT oid FROM pg_roles WHERE rolname = {})", role)
