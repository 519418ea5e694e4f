"""The words that settings may be, and the check that a given one is among them."""

from __future__ import annotations

from collections.abc import Sequence

from pgdefect.core.errors import UsageError
from pgdefect.core.wording import option

LABELS = ("normal", "anomalous")
"""Same rule in SQL: defect.review, pgdefect.search_condition."""
SPLITS = ("train", "test", "production", "simulated")
"""Same rule in SQL: pgdefect.check_split, pgdefect.search_condition."""
COMPARED = ("picture", "defect", "region")
"""What a search compares."""
SEARCHES = ("hnsw", "fast", "exact")
"""How a memory bank is searched."""


def check_word(setting: str, value: str | None, words: Sequence[str]) -> None:
    """Raises UsageError for a value that is none of the words; None is not set and passes."""
    if value is not None and value not in words:
        raise UsageError(f"{option(setting)} is {either(words)}, not {value!r}")


def either(words: Sequence[str]) -> str:
    """The words as an alternative: "train, test or production"."""
    return " or ".join([*([", ".join(words[:-1])] if len(words) > 1 else []), words[-1]])
