"""Migrations and SQL files bring a database to the code's schema, and say whether it is."""

from __future__ import annotations

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import text

from pgdefect.db.engine import Database
from pgdefect.db.schema import _alembic_config, _head, check, require_current, upgrade
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


def test_head_is_the_one_alembic_finds() -> None:
    assert ScriptDirectory.from_config(_alembic_config()).get_current_head() == _head()


def test_a_changed_sql_file_is_noticed_and_applied(database: Database) -> None:
    with database.begin() as connection:
        connection.execute(
            text("UPDATE pgdefect.sql_file SET sha256 = '' WHERE name = 'views/30_images.sql'")
        )
        connection.execute(text("DROP VIEW defect.images"))
        connection.execute(text("CREATE VIEW defect.images AS SELECT 1 AS other_columns"))
    with pytest.raises(SchemaOutOfDate, match="functions or views"):
        require_current(database)
    assert check(database).differences == (
        "sql/views/30_images.sql is not the version in the database",
    )
    assert upgrade(database).sql_files == ("views/30_images.sql",)
    assert check(database).ok
    with database.connect() as connection:
        connection.execute(text("SELECT image_id, verdict FROM defect.images"))


@pytest.mark.parametrize(
    "damage",
    [
        "DROP FUNCTION defect.find_image",
        "ALTER TABLE pgdefect.image DROP COLUMN group_name CASCADE",
        "DROP INDEX pgdefect.uq_detector_active",
    ],
)
def test_check_names_what_is_missing(database: Database, damage: str) -> None:
    with database.begin() as connection:
        connection.execute(text(damage))
    assert not check(database).ok
