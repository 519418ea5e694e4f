"""How a use case says how far it is; the CLI draws it, tests ignore it."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with the stage's name, units done, units in all (0 when not known)."""


def silent(stage: str, done: int, total: int) -> None:
    """Report nothing."""
