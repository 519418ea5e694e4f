"""A database with reader and writer, and sessions of theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from urllib.parse import quote

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import text

from pgdefect.db.access.logins import add_login, drop_login, list_logins
from pgdefect.db.access.roles import setup
from pgdefect.db.connection.engine import Database

Clone = Callable[[Database | None], AbstractContextManager[Database]]
RESET = (
    "-c default_transaction_read_only=off -c statement_timeout=0 -c work_mem=4MB "
    "-c idle_in_transaction_session_timeout=0"
)
"""Options that take back what a login can take back: what is left protects."""


def database_name(database: Database) -> str:
    return str(conninfo_to_dict(database.url)["dbname"])


def as_login(database: Database, name: str) -> Database:
    """The same database for another login; the test server lets its OS user be any."""
    return Database(database.url.replace("pgdefect@", f"{quote(name, safe='')}@", 1))


@contextmanager
def session(database: Database, name: str, options: str = "") -> Iterator[psycopg.Connection[Any]]:
    """A new session of a login, as psql opens one: nothing of pgvector is loaded in it."""
    with psycopg.connect(
        as_login(database, name).url, options=options, autocommit=True
    ) as connection:
        yield connection


@contextmanager
def roles_of(database: Database, **logins: str) -> Iterator[None]:
    """Roles and logins (name → kind) for a block; they are the cluster's, not the database's."""
    report = setup(database)
    try:
        assert report.for_administrator == ()
        for name, kind in logins.items():
            assert add_login(database, name, kind, None).made  # type: ignore[arg-type]
        yield
    finally:
        for login in list_logins(database):
            if login.can_login and login.kind != "owner":
                drop_login(database, login.name)
        drop_groups(database, report.reader, report.writer)


def drop_groups(database: Database, *names: str) -> None:
    with database.autocommit() as connection:
        for name in names:
            exists = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [name])
            if exists.fetchone():
                for statement in ("DROP OWNED BY {}", "DROP ROLE {}"):
                    connection.execute(sql.SQL(statement).format(sql.Identifier(name)))


def as_leather(database: Database) -> None:
    """Give the trained category the names that the examples in comments speak of."""
    with database.begin() as connection:
        connection.execute(text("UPDATE pgdefect.category SET name = 'leather'"))
        connection.execute(
            text(
                "UPDATE pgdefect.image SET path = replace(path, '002', '003') "
                "WHERE path LIKE 'test/scratch/002%'"
            )
        )
