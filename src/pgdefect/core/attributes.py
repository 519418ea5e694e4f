"""Attributes of photographs as JSON: one flat object of texts, numbers and logical values."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from pgdefect.core.errors import UsageError
from pgdefect.core.wording import option

__all__ = ["checked_attributes", "parse_attributes"]


def parse_attributes(said: str) -> dict[str, Any]:
    """Attributes as a command line has them.

    Raises:
        UsageError: it is no JSON object, or `checked_attributes` refuses it.
    """
    try:
        found = json.loads(said)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{option('attributes')} {said[:200]!r} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise UsageError(
            f'{option("attributes")} is a JSON object such as {{"line": 3}}, not {said[:200]!r}'
        )
    return checked_attributes(found)


def checked_attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The same attributes.

    Raises:
        UsageError: a value is a list or an object, no finite number, or a text that the database
            cannot hold.
    """
    for name, value in attributes.items():
        if not isinstance(value, str | int | float | bool | None):
            what = "is neither a text nor a number nor true or false"
        elif isinstance(value, float) and not math.isfinite(value):
            what = "is no finite number"
        elif any(_unstorable(text) for text in (str(name), str(value))):
            what = "has a character that the database cannot hold"
        else:
            continue
        raise UsageError(f"{option('attributes')}: {name!r} is {value!r}, which {what}")
    return dict(attributes)


def _unstorable(text: str) -> bool:
    return any(character == "\0" or "\ud800" <= character <= "\udfff" for character in text)
