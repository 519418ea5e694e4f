"""Log lines on stderr, where ``--log-format`` asks for them; stdout is never touched.

``text``: a line with ``name=value`` for each event, beside the notes for people. ``json``: one
object a line, and nothing else on stderr: notes and errors are objects, too. The events are those
of `pgdefect.usecases.common.log`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import logging

FORMATS = ("text", "json")
_handler: logging.Handler | None = None
_format: str | None = None


def set_up(form: str | None) -> None:
    """Write events in one of `FORMATS`; None ends it, and leaves logging as a library does."""
    global _handler, _format
    if form is None and _handler is None:
        return  # without loading the standard library's logging: most commands need none
    import logging

    from pgdefect.cli.log_lines import Lines

    logger = logging.getLogger("pgdefect")
    if _handler is not None:
        logger.removeHandler(_handler)
    _format = form
    _handler = None if form is None else Lines(form)
    if _handler is not None:
        logger.addHandler(_handler)
    logger.setLevel(logging.NOTSET if form is None else logging.INFO)
    logger.propagate = form is None


def active() -> bool:
    """Whether stderr has log lines, among which progress bars would be in the way."""
    return _format is not None


def said(name: str, message: str, *, error: bool = False, **fields: Any) -> bool:
    """Write a note or an error as an object where stderr is for those alone; whether it is."""
    if _format != "json":
        return False
    import logging

    level = logging.ERROR if error else logging.INFO
    fields = {"message": message, **fields}
    logging.getLogger("pgdefect.cli").log(level, name, extra={"fields": fields})
    return True
