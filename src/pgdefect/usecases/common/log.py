"""Log events: a line each, with fields, where logging is switched on.

The standard library's logging: programs that use pgdefect as a library read the same events from
the logger ``pgdefect``, their fields in `record.fields`.
"""

from __future__ import annotations

import logging
from typing import Any

__all__ = ["event", "failure", "wanted"]

_LOGGER = logging.getLogger("pgdefect")
# Nothing is printed unless somebody asks; Python would print warnings.
_LOGGER.addHandler(logging.NullHandler())


def wanted() -> bool:
    """Whether anybody reads events, so that fields are worth making."""
    return _LOGGER.isEnabledFor(logging.INFO)


def event(name: str, **fields: Any) -> None:
    """Something was done: ``inspected``."""
    _LOGGER.info(name, extra={"fields": fields})


def failure(name: str, **fields: Any) -> None:
    """Something was skipped, and the work continues: ``unreadable``."""
    _LOGGER.warning(name, extra={"fields": fields})
