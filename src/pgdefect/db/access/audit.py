"""The audit trail: entries that no trigger can make, and the newest one's hash.

Triggers record changes of rows. Logins belong to the server and a restoration replaces the trail,
so the commands record those themselves.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, text


def record(
    connection: Connection,
    action: str,
    subject: str,
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any] | None,
) -> None:
    """Add an entry in the caller's transaction; the login and the server's time go with it.

    Args:
        connection: of the owner, in a transaction.
        action: what was done, as a verb.
        subject: what it was done to, "login analyst".
        before: what held before; None for what is new.
        after: what holds now; None for what is gone.
    """
    connection.execute(
        text(
            "SELECT pgdefect.record_audit(:action, :subject, CAST(:before AS jsonb), "
            "CAST(:after AS jsonb))"
        ),
        {
            "action": action,
            "subject": subject,
            "before": None if before is None else json.dumps(dict(before)),
            "after": None if after is None else json.dumps(dict(after)),
        },
    )


def newest_entry(connection: Connection) -> dict[str, Any] | None:
    """Number and hash of the newest entry; None where there is no trail yet."""
    if connection.scalar(text("SELECT to_regclass('pgdefect.audit_head')")) is None:
        return None
    row = connection.execute(text("SELECT number, hash FROM pgdefect.audit_head")).one()
    return {"number": row[0], "hash": row[1]}
