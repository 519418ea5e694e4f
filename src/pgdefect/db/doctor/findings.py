"""What a check says: a finding, and the repair that the doctor may make of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from pgdefect.core.wording import command
from pgdefect.db.connection.engine import Database
from pgdefect.db.schema.indexes import run_beside

Severity = Literal["fault", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("fault", "warning", "note")

Repair = Callable[[Database], None]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or could be better.

    fault: answers are wrong or missing, or something broken was left behind. warning: it
    works, but slower, or not for long. note: worth knowing. remedy is a command, or SQL.
    keeps says why a repair that raised no error may have left it.
    """

    severity: Severity
    check: str
    subject: str
    message: str
    remedy: str
    repair: Repair | None = field(default=None, repr=False, compare=False)
    keeps: str = field(default="the owner may be able to", repr=False, compare=False)

    @property
    def fixable(self) -> bool:
        return self.repair is not None

    def to_json(self) -> dict[str, object]:
        """The finding as plain values; `fixable` instead of the repair."""
        names = ("severity", "check", "subject", "message", "remedy", "fixable")
        return {name: getattr(self, name) for name in names}


def fix_command() -> str:
    """The command that makes the repairs."""
    return command("doctor", fix=True)


def sql_repair(*statements: str) -> Repair:
    """A repair by statements, each in a transaction of its own, that waits for no lock long."""
    return lambda database: run_beside(database, statements, "the repair")


def psql(statement: str) -> str:
    """The command that runs a statement."""
    return f'pgdefect db psql -- -c "{statement}"'


def size(count: int) -> str:
    """Bytes as people say them."""
    amount = float(count)
    for unit in ("bytes", "KB", "MB", "GB"):
        if amount < 1024 or unit == "GB":
            break
        amount /= 1024
    return f"{amount:.0f} {unit}" if unit == "bytes" else f"{amount:.3g} {unit}"
