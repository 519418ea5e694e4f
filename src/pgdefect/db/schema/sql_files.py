"""The files of ``sql/``: functions and views, applied again whenever their text changes.

``sql/defect/`` holds the public functions and views of schema ``defect``, ``sql/internal/`` the
functions of schema ``pgdefect``: one object a file, which is named for it. Files need no order:
function bodies are checked after all are there, and a view or a function's signature comes after
what its text names. ``sql/column_comments.sql`` explains the columns of all views and runs last.

``CREATE OR REPLACE`` cannot change a view's columns or a function's arguments and result. Where
a change needs it, the changed functions, and if that is not enough every view, are dropped and
made again, inside the transaction of the upgrade, with the rights that others had been given.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from graphlib import TopologicalSorter
from pathlib import Path, PurePosixPath
from typing import Any

import psycopg
from psycopg import sql

from pgdefect.core.detector_kinds import KINDS
from pgdefect.core.distance import METRICS
from pgdefect.core.errors import Conflict, DatabaseError

_OBJECT = re.compile(r"^CREATE OR REPLACE (FUNCTION|VIEW) (\w+)\.(\w+)", re.MULTILINE)
_COMMENT_OR_LITERAL = re.compile(r"--[^\n]*|'(?:[^']|'')*'")
_QUALIFIED_NAME = re.compile(r"\b(defect|pgdefect)\.(\w+)")
_CANNOT_REPLACE = (
    # Another column, type or name of a result.
    psycopg.errors.InvalidTableDefinition,
    psycopg.errors.InvalidFunctionDefinition,
    # Other arguments make a second function of the name, and its COMMENT ambiguous.
    psycopg.errors.AmbiguousFunction,
)
SCHEMA_OF = {"defect": "defect", "internal": "pgdefect"}  # by folder
_Name = tuple[str, str]


@dataclass(frozen=True)
class SqlFile:
    """One file: its name under ``sql/``, its text, and what it makes."""

    name: str
    content: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content.encode()).hexdigest()

    @cached_property
    def objects(self) -> list[tuple[str, str, str]]:
        """Kind (FUNCTION or VIEW), schema and name of each."""
        return _OBJECT.findall(self.content)

    @property
    def is_view(self) -> bool:
        """Whether it is applied with the views: it makes one, or comments on them all."""
        return all(kind == "VIEW" for kind, _, _ in self.objects)

    @property
    def names(self) -> set[_Name]:
        """Schema and name of each object."""
        return {(schema, name) for _, schema, name in self.objects}

    @property
    def mentions(self) -> set[_Name]:
        """What must exist before the file runs, among other things: all but a body's names."""
        checked = self.content if self.is_view else self.content.partition("AS $$")[0]
        return set(_QUALIFIED_NAME.findall(_COMMENT_OR_LITERAL.sub("", checked)))


def resource_dir(name: str) -> Path:
    """``migrations`` or ``sql``: inside an installed wheel, else at the top of the checkout."""
    package = Path(__file__).resolve().parents[2]
    for candidate in (package / name, package.parents[1] / name):
        if candidate.is_dir():
            return candidate
    raise DatabaseError(f"pgdefect's {name} are missing from the installation; reinstall pgdefect")


def sql_files() -> list[SqlFile]:
    """The files in the order they are applied.

    Raises:
        graphlib.CycleError: two views, or signatures of functions, name each other.
    """
    root = resource_dir("sql")
    paths = [path for folder in SCHEMA_OF for path in (root / folder).glob("*.sql")]
    return in_order(
        [
            SqlFile(path.relative_to(root).as_posix(), _filled_in(path.read_text(encoding="utf-8")))
            for path in [*paths, root / "column_comments.sql"]
        ]
    )


def _filled_in(content: str) -> str:
    """The file's text with what Python knows: branches for the metrics and kinds of its tables."""
    for name, branches in {
        "metric_lengths": [
            f"    WHEN '{metric.name}' THEN RETURN {metric.length_sql};"
            for metric in METRICS.values()
        ],
        "kind_preferences": [f"        WHEN '{kind}' THEN {n}" for n, kind in enumerate(KINDS)],
        "kind_nouns": [f"        WHEN '{kind.name}' THEN '{kind.noun}'" for kind in KINDS.values()],
    }.items():
        content = content.replace(f":{name}", "\n".join(branches))
    return content


def in_order(files: Sequence[SqlFile]) -> list[SqlFile]:
    """Functions, then views, each after what it needs of the others; comments on columns last."""
    objects = {name: file for file in files for name in file.names}
    rest = [file for file in files if not file.names]
    sorter = TopologicalSorter(
        {
            file: {objects[name] for name in file.mentions & objects.keys()} - {file}
            for file in objects.values()
        }
    )
    sorter.prepare()
    ordered: list[SqlFile] = []
    while sorter.is_active():
        ready = sorted(sorter.get_ready(), key=lambda file: (file.is_view, file.name))
        sorter.done(*ready)
        ordered += ready
    return ordered + rest


def held_files(raw: psycopg.Connection[Any]) -> dict[str, str]:
    """sha256 of each file, by name, as the database holds it."""
    return dict(raw.execute("SELECT name, sha256 FROM pgdefect.sql_file").fetchall())


def stale_files(raw: psycopg.Connection[Any]) -> list[str]:
    """What differs between the code's files and the database's, in words."""
    held = held_files(raw)
    files = {file.name: file.sha256 for file in sql_files()}
    stale = [name for name, digest in files.items() if held.get(name) != digest]
    return [f"sql/{name} is not the version in the database" for name in stale] + [
        f"sql/{name} is gone from the code" for name in held.keys() - files
    ]


def missing_objects(raw: psycopg.Connection[Any]) -> list[str]:
    """Functions and views of the code that the database does not have, in words."""
    # A function may be there several times, for arguments of several types.
    held = Counter(
        raw.execute(
            "SELECT 'VIEW', relnamespace::regnamespace::text, relname FROM pg_class "
            "WHERE relkind = 'v' UNION ALL "
            "SELECT 'FUNCTION', pronamespace::regnamespace::text, proname FROM pg_proc"
        ).fetchall()
    )
    wanted = Counter(each for file in sql_files() for each in file.objects)
    return [
        f"{kind.lower()} {schema}.{name} is missing"
        for (kind, schema, name), count in wanted.items()
        if held[kind, schema, name] < count
    ]


def apply_sql_files(raw: psycopg.Connection[Any], vector_schema: str) -> list[str]:
    """Bring functions and views up to the code's, in the caller's transaction.

    Where any view has changed all are applied: comments on columns are made for all at once.
    Returns the names of the files whose text had changed, and of those that were gone.

    Raises:
        Conflict: where a view of somebody else's stands on one that must be dropped.
    """
    held = held_files(raw)
    files = sql_files()
    stale = [file for file in files if held.get(file.name) != file.sha256]
    gone = sorted(held.keys() - {file.name for file in files})
    if not stale and not gone:
        return []
    views = [file for file in files if file.is_view]
    changed = [file for file in stale if not file.is_view]
    some = views if any(file.is_view for file in stale) else []
    lost, rights = _lost_names(gone, files), _rights(raw)
    # Views are dropped only where it must be: objects of somebody else's may stand on them.
    for old_views, new_views in ((lost, some), (lost | _names(views), views)):
        try:
            with raw.transaction():
                _drop_views(raw, old_views)
                _drop_functions(raw, lost)
                raw.execute("SET LOCAL check_function_bodies = off")
                for file in files:
                    if file in changed:
                        _replace_function(raw, file, vector_schema)
                    elif file in new_views:
                        _run(raw, file, vector_schema)
                raw.execute("SET LOCAL check_function_bodies = on")
                _check_bodies(raw, _names(changed))
                _give_back(raw, rights)
            break
        except (*_CANNOT_REPLACE, Conflict):
            if old_views != lost:
                raise
    for file in stale:
        raw.execute(
            "INSERT INTO pgdefect.sql_file (name, sha256) VALUES (%s, %s) "
            "ON CONFLICT (name) DO UPDATE SET sha256 = excluded.sha256, applied_at = now()",
            [file.name, file.sha256],
        )
    raw.execute("DELETE FROM pgdefect.sql_file WHERE name = ANY(%s)", [gone])
    return [file.name for file in stale] + gone


def _run(raw: psycopg.Connection[Any], file: SqlFile, vector_schema: str) -> None:
    raw.execute(file.content.replace(':"vector_schema"', vector_schema))


def _replace_function(raw: psycopg.Connection[Any], file: SqlFile, vector_schema: str) -> None:
    try:
        with raw.transaction():
            _run(raw, file, vector_schema)
            if _num_functions(raw, file.names) != len(file.objects):
                # With other arguments the older version stayed, as a second function of the name.
                raise psycopg.errors.AmbiguousFunction
    except _CANNOT_REPLACE:
        _drop_functions(raw, file.names)
        _run(raw, file, vector_schema)


def _num_functions(raw: psycopg.Connection[Any], names: set[_Name]) -> int:
    row = raw.execute(
        f"SELECT count(*) FROM pg_proc WHERE {_IS_ONE_OF.format('pronamespace', 'proname')}",
        _columns(names),
    ).fetchone()
    assert row is not None
    return int(row[0])


def _check_bodies(raw: psycopg.Connection[Any], names: set[_Name]) -> None:
    """What CREATE FUNCTION would have checked of these, had all been there."""
    for validator, oid in raw.execute(
        "SELECT l.lanvalidator::regproc::text, p.oid FROM pg_proc p "
        "JOIN pg_language l ON l.oid = p.prolang "
        f"WHERE l.lanvalidator <> 0 AND {_IS_ONE_OF.format('p.pronamespace', 'p.proname')} "
        "ORDER BY p.oid",
        _columns(names),
    ).fetchall():
        raw.execute(f"SELECT {validator}(%s)", [oid])


def _names(files: Iterable[SqlFile]) -> set[_Name]:
    return {name for file in files for name in file.names}


def _lost_names(gone: Iterable[str], files: Iterable[SqlFile]) -> set[_Name]:
    """What files made that are no longer there: a file is named for its object.

    Until version 0.1 the folders were ``functions`` and ``views``, whatever the schema, and a
    number stood before the name.
    """
    lost: set[_Name] = set()
    present = _names(files)
    for path in map(PurePosixPath, gone):
        if schema := SCHEMA_OF.get(str(path.parent)):
            lost.add((schema, path.stem))
        else:
            name = path.stem.partition("_")[2]
            if name not in {known for _, known in present}:
                lost |= {(schema, name) for schema in SCHEMA_OF.values()}
    return lost - present


_IS_ONE_OF = "({}::regnamespace::text, {}) IN (SELECT * FROM unnest(%s::text[], %s::text[]))"


def _columns(names: set[_Name]) -> list[list[str]]:
    """Schemas and names, as `_IS_ONE_OF` takes them."""
    return [[schema for schema, _ in sorted(names)], [name for _, name in sorted(names)]]


def _drop_views(raw: psycopg.Connection[Any], names: set[_Name]) -> None:
    """Our views, in one statement: they may stand on each other."""
    views = raw.execute(
        "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'v' "
        f"AND {_IS_ONE_OF.format('relnamespace', 'relname')} ORDER BY 1",
        _columns(names),
    ).fetchall()
    if not views:
        return
    with _nothing_else_on_it():
        raw.execute(f"DROP VIEW {', '.join(name for (name,) in views)}")


@contextmanager
def _nothing_else_on_it() -> Iterator[None]:
    try:
        yield
    except psycopg.errors.DependentObjectsStillExist as error:
        detail = " ".join(str(error.diag.message_detail).split())
        raise Conflict(
            f"the upgrade changes views or functions of pgdefect's, and other objects stand on "
            f"them: {detail}. Drop those, run pgdefect db upgrade, and make them again; "
            "nothing was changed"
        ) from error


def _drop_functions(raw: psycopg.Connection[Any], names: set[_Name]) -> None:
    """Every function of these names, whatever its arguments."""
    for (signature,) in raw.execute(
        "SELECT oid::regprocedure::text FROM pg_proc "
        f"WHERE {_IS_ONE_OF.format('pronamespace', 'proname')} "
        # Triggers stand on theirs, which migrations make.
        "AND prorettype <> 'trigger'::regtype",
        _columns(names),
    ).fetchall():
        with _nothing_else_on_it():
            raw.execute(f"DROP FUNCTION {signature}")


_Right = tuple[str, str, str, str, bool]


def _rights(raw: psycopg.Connection[Any]) -> list[_Right]:
    """What was granted on our views and functions to others than their owner.

    Kind of object, its name, grantee ('' for everyone), privilege, and whether with the option
    to grant it on.
    """
    return raw.execute(
        """
        SELECT o.kind, o.name, coalesce(r.rolname, ''), a.privilege_type, a.is_grantable
        FROM (
            SELECT 'VIEW' AS kind, relname AS name, relowner AS owner, relacl AS acl
            FROM pg_class WHERE relnamespace = 'defect'::regnamespace AND relkind = 'v'
            UNION ALL
            SELECT 'FUNCTION', proname, proowner, proacl
            FROM pg_proc WHERE pronamespace = ANY(%s::regnamespace[])
        ) o
        CROSS JOIN LATERAL aclexplode(o.acl) a
        LEFT JOIN pg_roles r ON r.oid = a.grantee
        WHERE a.grantee <> o.owner
        """,
        [list(SCHEMA_OF.values())],
    ).fetchall()


def _give_back(raw: psycopg.Connection[Any], rights: list[_Right]) -> None:
    """Grant again what was granted, on every object of the name that there is now."""
    for kind, name, grantee, privilege, grantable in rights:
        query = (
            "SELECT oid::regclass::text FROM pg_class "
            "WHERE relnamespace = 'defect'::regnamespace AND relkind = 'v' AND relname = %s"
            if kind == "VIEW"
            else "SELECT oid::regprocedure::text FROM pg_proc "
            "WHERE pronamespace = ANY(ARRAY['pgdefect', 'defect']::regnamespace[]) "
            "AND proname = %s"
        )
        for (identity,) in raw.execute(query, [name]).fetchall():
            raw.execute(
                sql.SQL("GRANT {} ON {} {} TO {}{}").format(
                    sql.SQL(privilege),
                    sql.SQL("FUNCTION" if kind == "FUNCTION" else "TABLE"),
                    sql.SQL(identity),
                    sql.Identifier(grantee) if grantee else sql.SQL("PUBLIC"),
                    sql.SQL(" WITH GRANT OPTION" if grantable else ""),
                )
            )
