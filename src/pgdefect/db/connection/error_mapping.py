"""Map the driver's errors to pgdefect's, once; the cause is kept."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from sqlalchemy import exc

from pgdefect.core import errors
from pgdefect.core.wording import option

__all__ = ["cannot_connect", "translated"]

_REFUSED_LOGIN = ("password", "pg_hba.conf", "authentication failed", "role ")
# Recognized by their text, the server's and PgBouncer's: libpq gives no SQLSTATE for a connection
# that failed. In other languages the server's text is shown with other advice.
_NO_SLOT = (
    "too many clients",
    "too many connections",
    "connection slots are reserved",
    "no more connections allowed",
)
_NOT_YET = ("system is starting up", "not yet accepting connections", "in recovery mode")


def cannot_connect(error: psycopg.Error, where: str) -> errors.DatabaseError:
    """The error for a connection that could not be made; `where` is a URL without password."""
    text = " ".join(str(error).split())
    lowered = text.lower()
    if any(phrase in lowered for phrase in _NO_SLOT):
        return _no_slot(text, where)
    if any(phrase in lowered for phrase in _REFUSED_LOGIN):
        return errors.AuthenticationFailed(
            f"{where} refuses this login: {text}. Check user and password in the URL, "
            "PGPASSWORD or ~/.pgpass"
        )
    if any(phrase in lowered for phrase in _NOT_YET):
        return errors.ServerStarting(
            f"the server at {where} is not accepting connections yet: {text}. Run the command "
            "again when it has started; see its log"
        )
    return errors.DatabaseUnavailable(
        f"no database at {where}: {text}. Check PGDEFECT_DATABASE_URL or {option('database_url')}; "
        "without it the embedded server is used"
    )


@contextmanager
def translated(where: str, max_connections: int = 0, patience: float = 0.0) -> Iterator[None]:
    """Turn the driver's errors into ours.

    Args:
        where: the database's URL without password.
        max_connections, patience: of the pool that the block takes connections from, for what is
            said when none was free.
    """
    try:
        yield
    except exc.TimeoutError as error:
        raise errors.NoConnectionFree(
            f"all {max_connections} connections that this process may have to {where} were in use "
            f"for {patience:g} seconds. Have it do less at a time, or let it have more: "
            "PGDEFECT_MAX_CONNECTIONS"
        ) from error
    except (psycopg.Error, exc.DBAPIError) as error:
        original = error.orig if isinstance(error, exc.DBAPIError) else error
        translation = _translate(original, where)
        if translation is None:
            raise
        raise translation from error


def _spelled(hint: str) -> str:
    """The hint of a SQL function, its named arguments in the words of whoever is asked."""
    return re.sub(r"\b([a-z_]+) => true\b", lambda found: option(found[1], True), hint)


def _no_slot(message: str, where: str) -> errors.NoConnectionFree:
    return errors.NoConnectionFree(
        f"the server at {where} has no connection free: {message}. Run the command again when "
        "others have ended. If it stays so, lower PGDEFECT_MAX_CONNECTIONS where many processes "
        "run, or raise max_connections there, or the connection limit of this role or database"
    )


def _translate(error: BaseException | None, where: str) -> errors.PgdefectError | None:
    if not isinstance(error, psycopg.Error):
        return None
    state = error.sqlstate or ""
    diagnostics = error.diag
    message = diagnostics.message_primary or " ".join(str(error).split())
    full = (
        f"{message}. {_spelled(diagnostics.message_hint)}" if diagnostics.message_hint else message
    )
    match state:
        case "PD400":
            return errors.UsageError(full)
        case "PD404":
            return errors.NotFound(full)
        case "PD409":
            return errors.Conflict(full)
        case "53100":
            return errors.DatabaseFull(
                f"the server at {where} has no space left: {message}. Nothing was stored; "
                "free some space and run the command again"
            )
        case "53200" if "max_locks_per_transaction" in (diagnostics.message_hint or ""):
            return errors.DatabaseFull(
                f"the server at {where} has no room for as many locks at once as this takes, some "
                "for each memory bank. Nothing was stored; set max_locks_per_transaction higher "
                "there, restart it, and run the command again"
            )
        case "53200":
            return errors.DatabaseFull(
                f"the server at {where} ran out of memory: {message}. Nothing was stored; "
                "lower maintenance_work_mem or free memory, and run the command again"
            )
        case "53300":
            return _no_slot(message, where)
        case "40P01" | "40001":
            return errors.TransactionRolledBack(
                f"the server rolled back this transaction because of a deadlock or a serialization "
                f"conflict: {message}. Nothing was stored; run the command again"
            )
        case "55P03":
            return errors.Busy(f"another session holds a lock this needs: {message}. Try again")
        case "57014":
            return errors.DatabaseError(f"the server cancelled the statement: {message}")
        case "42P01" | "3F000" | "42883" | "42703":
            return errors.SchemaOutOfDate(
                f"the database at {where} does not have pgdefect's present schema ({message}). "
                "Run: pgdefect db upgrade"
            )
        case "23503":
            return errors.Conflict(
                f"another session deleted what this refers to, or refers to what this deletes: "
                f"{message}. Run the command again"
            )
        case "23505":
            return errors.Conflict(
                f"a row like this is there already: {message}. Another session stored it at the "
                "same moment, or a sequence of ids was reset, as a restore by other means can "
                "do. Nothing was stored; run the command again"
            )
        case "42501":
            return errors.PermissionDenied(
                f"this login may not do that: {full}. What each role may do is in docs/roles.md; "
                "pgdefect db role list shows who has which"
            )
        case "25006":
            return errors.PermissionDenied(
                f"this session is read-only: {message}. A reader's sessions are by default; log in "
                "as a writer or the owner"
            )
    if state.startswith("22"):
        return errors.InputError(f"the database rejected a value: {full}")
    if isinstance(error, psycopg.InternalError) and " results from command " in message:
        # psycopg says so where a statement was cancelled after its rows were sent.
        return errors.DatabaseError(f"the server cancelled the statement: {message}")
    operational = isinstance(error, psycopg.OperationalError)
    if state.startswith(("08", "57P")) or (operational and not state):
        return errors.DatabaseUnavailable(
            f"lost the connection to {where}: {message}. Nothing half-done was stored; "
            "run the command again"
        )
    if operational:
        return errors.DatabaseError(f"the server at {where} could not do that: {full}")
    return None
