"""What a log line looks like, as text and as JSON."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any


class Lines(logging.Handler):
    """One line on stderr for each event."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self._line = _as_json if form == "json" else _as_text

    def emit(self, record: logging.LogRecord) -> None:
        """Write the event; a full disk or a closed pipe stops no inspection."""
        try:
            print(self._line(record), file=sys.stderr, flush=True)
        except Exception:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Say nothing: stderr is what could not be written to."""


def _as_json(record: logging.LogRecord) -> str:
    head = {"time": _time(record), "level": record.levelname.lower(), "event": record.getMessage()}
    return json.dumps(head | _fields(record), default=str)


def _as_text(record: logging.LogRecord) -> str:
    fields = " ".join(f"{name}={_word(value)}" for name, value in _fields(record).items())
    return f"{_time(record)} {record.levelname} {record.getMessage()} {fields}".rstrip()


def _word(value: Any) -> str:
    """A value without spaces around or within it that could be taken for two."""
    text = json.dumps(value, default=str)
    plain = text[1:-1] if isinstance(value, str) else text
    return plain if plain and not set(plain) & set(' "=\\') else text


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = getattr(record, "fields", {})
    return fields
