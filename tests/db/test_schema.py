"""Migrations and SQL files bring a database to the code's schema, and say whether it is."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from pgdefect.db.engine import Database
from pgdefect.db.schema import check, require_current, upgrade
from pgdefect.errors import SchemaOutOfDate


def test_upgrade_makes_what_the_models_say(empty_database: Database) -> None:
    with pytest.raises(SchemaOutOfDate, match="pgdefect db upgrade"):
        require_current(empty_database)
    assert not check(empty_database).ok
    report = upgrade(empty_database)
    assert report.revision_before is None
    assert report.sql_files
    assert check(empty_database).differences == ()
    require_current(empty_database)


def test_upgrade_again_does_nothing(database: Database) -> None:
    report = upgrade(database)
    assert report.sql_files == ()
    assert report.revision_before == report.revision


def test_trained_database_agrees_too(trained: Database) -> None:
    assert check(trained).differences == ()
