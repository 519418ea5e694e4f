"""Trying inputs on a target, and counting what came of them."""

from __future__ import annotations

import traceback
import warnings
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from fuzz.targets import Try
from pgdefect.core.errors import PgdefectError

_FAULTS_KEPT = 5


@dataclass
class Outcome:
    """What came of the inputs: refusals by the error's name, and faults, each kind once."""

    tried: int = 0
    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    faults: dict[str, str] = field(default_factory=dict)
    """Type and place of what was raised → traceback and input."""


def attempt(check: Try, strategy: st.SearchStrategy[Any], inputs: int, number: int = 0) -> Outcome:
    """Try about `inputs` inputs, the same for the same `number`."""
    outcome = Outcome()

    @seed(number)
    @settings(
        max_examples=inputs,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def one(value: Any) -> None:
        outcome.tried += 1
        try:
            with warnings.catch_warnings(action="ignore"):
                check(value)
        except PgdefectError as error:
            outcome.refused[type(error).__name__] += 1
        except Exception as error:
            _note(outcome, error, value)
        else:
            outcome.accepted += 1

    one()
    return outcome


def _note(outcome: Outcome, error: Exception, value: Any) -> None:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    kind = f"{type(error).__name__} at {frame.filename.rpartition('/')[2]}:{frame.lineno}"
    if kind not in outcome.faults and len(outcome.faults) < _FAULTS_KEPT:
        shown = repr(value)
        told = "".join(traceback.format_exception(error, limit=-8))
        outcome.faults[kind] = f"{told}input ({len(shown)} characters as Python): {shown[:2000]}"
