"""A little of what `make fuzz` tries, the same inputs each time."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuzz.run import attempt
from fuzz.targets import TARGETS, Target
from pgdefect.db.connection.engine import Database

LIGHT, HEAVY = 150, 40
"""Inputs of a target here; a hundred times as many in `make fuzz`."""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_nothing_but_documented_errors(target: Target, tmp_path: Path) -> None:
    if target.heavy:
        pytest.importorskip("torch")
    inputs = HEAVY if target.heavy else LIGHT
    outcome = attempt(target.prepare(tmp_path), target.strategy(), inputs)
    assert outcome.faults == {}
    assert outcome.tried >= inputs
    assert outcome.accepted + sum(outcome.refused.values()) == outcome.tried


def test_names_go_through_the_database_and_back(database: Database) -> None:
    from fuzz.targets import names, names_in

    outcome = attempt(names_in(database), names, 60)
    assert outcome.faults == {}
    assert outcome.accepted > 10


def test_a_fault_is_seen() -> None:
    """The harness itself: what is not documented is counted, with the input that shows it."""
    from hypothesis import strategies as st

    def check(number: int) -> None:
        assert number != 7

    outcome = attempt(check, st.integers(0, 9), 100)
    [(kind, told)] = outcome.faults.items()
    assert kind.startswith("AssertionError at test_fuzz.py:")
    assert told.endswith(": 7")
