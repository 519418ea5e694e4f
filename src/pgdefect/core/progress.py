"""How long work tells of its progress."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with a stage, how much of it is done, and how much there is; 0 where that is unknown."""


def silent(stage: str, done: int, total: int) -> None:
    """Progress that nobody watches."""
