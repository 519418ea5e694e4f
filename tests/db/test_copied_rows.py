"""Functions that copy rows of a table copy each of its columns, also those added later."""

from __future__ import annotations

import re

import pytest
from sqlalchemy import text

from pgdefect.db.connection.engine import Database
from pgdefect.db.schema.sql_files import sql_files

INSERT = re.compile(r"INSERT INTO pgdefect\.inspection\b[^(;]*\(([^)]*)\)")
UPDATE = re.compile(r"\bDO UPDATE\s+SET (.*?)\bRETURNING\b", re.DOTALL)
OF_THE_LOOK = {"event_key", "station"}
"""Who looked, and in which run: what a re-judgement, which looks at nothing, does not have."""
COPIES = {file.name: file.content for file in sql_files() if INSERT.search(file.content)}


def columns_of(database: Database, condition: str) -> set[str]:
    with database.connect() as connection:
        return set(
            connection.scalars(
                text(
                    "SELECT attname FROM pg_attribute a WHERE attrelid = "
                    "'pgdefect.inspection'::regclass AND attnum > 0 AND NOT attisdropped "
                    f"AND attidentity = '' AND attgenerated = '' AND {condition}"
                )
            )
        )


@pytest.mark.parametrize("name", COPIES)
def test_inspections_are_copied_whole(database: Database, name: str) -> None:
    """A column left out would be NULL in every image that is judged again."""
    [listed] = INSERT.findall(COPIES[name])
    assert set(re.findall(r"\w+", listed)) == columns_of(database, "true") - OF_THE_LOOK
    for assigned in UPDATE.findall(COPIES[name]):
        keys = "attnum = ANY (SELECT unnest(conkey) FROM pg_constraint WHERE contype = 'u' "
        keys += "AND conrelid = a.attrelid)"
        expected = columns_of(database, f"NOT {keys}")
        assert set(re.findall(r"(\w+) = ", assigned)) == expected


def test_judging_again_is_among_them() -> None:
    assert "defect/rejudge.sql" in COPIES
