"""Errors of the driver become errors that say what to do."""

from __future__ import annotations

import psycopg
import pytest

from pgdefect.core.errors import DatabaseError
from pgdefect.db.connection.error_mapping import translated


def test_a_statement_cancelled_after_its_rows_were_sent_is_said_to_be() -> None:
    """What psycopg's server-side cursors raise then, found by an hour of faults."""
    said = "received 2 results from command 'FETCH FORWARD 4096 FROM \"pgdefect_export\"'"
    with (
        pytest.raises(DatabaseError, match="the server cancelled the statement") as caught,
        translated("here"),
    ):
        raise psycopg.InternalError(said)
    assert isinstance(caught.value.__cause__, psycopg.InternalError)


def test_another_internal_error_is_not_taken_for_it() -> None:
    with pytest.raises(psycopg.InternalError), translated("here"):
        raise psycopg.InternalError("something else")
