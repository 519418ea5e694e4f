"""Attributes of photographs: what is accepted, and what is refused before anything is stored."""

from __future__ import annotations

from typing import Any

import pytest

from pgdefect.core.attributes import checked_attributes, parse_attributes
from pgdefect.core.errors import UsageError


def test_texts_and_numbers() -> None:
    said = '{"line": 3, "shift": "late", "speed": 1.5, "rework": true, "note": null}'
    assert parse_attributes(said) == {
        **{"line": 3, "shift": "late", "speed": 1.5},
        **{"rework": True, "note": None},
    }


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[1]", "is a JSON object"),
        ('{"line": NaN}', "'line' is nan, which is no finite number"),
        ('{"line": 1e999}', "'line' is inf, which is no finite number"),
        ('{"a": {"b": 1}}', "'a' is {'b': 1}, which is neither a text nor a number"),
        ('{"a": [1]}', "which is neither a text nor a number"),
        ('{"a": "x\\u0000y"}', "which has a character that the database cannot hold"),
        ('{"\\ud800": 1}', "which has a character that the database cannot hold"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(said: str, fault: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_attributes(said)
    assert fault in str(caught.value)


@pytest.mark.parametrize("value", [object(), b"x", (1,)])
def test_values_that_python_alone_has(value: Any) -> None:
    with pytest.raises(UsageError, match="'a' is"):
        checked_attributes({"a": value})
