"""Ctrl-C ends a run, whatever the code under test makes of it."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

_seen = False


def install() -> None:
    """Listen to SIGINT; also where a shell ignores it for what it runs in the background."""
    signal.signal(signal.SIGINT, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> Any:
    global _seen
    if _seen:
        return  # a second one would cut the end of fixtures short
    _seen = True
    raise KeyboardInterrupt


def raise_if_swallowed() -> None:
    """Interrupt again after a test that has caught the interrupt, as the command line does."""
    if _seen:
        raise KeyboardInterrupt
