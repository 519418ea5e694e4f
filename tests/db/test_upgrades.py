"""An upgrade that fails, or has to wait too long, leaves the version before it in use."""

from __future__ import annotations

import shutil
from pathlib import Path

import psycopg
import pytest
from digests import definitions, digests
from sqlalchemy import text

from pgdefect.core.config import Settings
from pgdefect.core.errors import Busy, DatabaseError
from pgdefect.db.connection.engine import Database
from pgdefect.db.schema import schema
from pgdefect.db.schema.schema import newest_revision, require_current, upgrade
from pgdefect.db.schema.sql_files import resource_dir
from pgdefect.usecases.inspect.inspect import inspect

# -- upgrades that do not come to their end ------------------------------------------------

BROKEN = """
import sqlalchemy as sa
from alembic import op

revision = "9999"
down_revision = "{head}"


def upgrade() -> None:
    op.add_column("image", sa.Column("half_done", sa.Text()), schema="pgdefect")
    op.execute("UPDATE pgdefect.image SET half_done = path")
    op.execute("DROP VIEW defect.review_queue")
    op.execute("ALTER TABLE pgdefect.category ADD CHECK (length(name) > 100)")
"""


def test_a_migration_that_fails_leaves_the_version_before_it_in_use(
    trained: Database, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = digests(trained), definitions(trained)
    head = newest_revision()
    with monkeypatch.context() as newer:
        shutil.copytree(resource_dir("migrations"), tmp_path / "migrations")
        script = tmp_path / "migrations" / "versions" / "9999_broken.py"
        script.write_text(BROKEN.format(head=head))
        newer.setattr(schema, "resource_dir", lambda name: tmp_path / name)
        assert newest_revision() == "9999"
        with pytest.raises(DatabaseError, match=rf"from revision {head} to 9999 failed: .*check"):
            upgrade(trained)
    assert (digests(trained), definitions(trained)) == before
    require_current(trained)
    assert len(inspect(trained, settings, "parts", split="test").inspections) == 13


def test_who_is_in_the_way_of_an_upgrade_is_named(database: Database) -> None:
    with database.begin() as connection:
        connection.execute(
            text("UPDATE pgdefect.sql_file SET sha256 = '' WHERE name LIKE 'defect/%'")
        )
    before = digests(database)
    with psycopg.connect(database.url, application_name="a report") as analyst:
        analyst.execute("SELECT count(*) FROM defect.categories")
        pid = analyst.info.backend_pid
        with pytest.raises(Busy) as refused:
            upgrade(database, lock_wait=1)
    message = str(refused.value)
    assert "the upgrade gave up after 1 seconds" in message
    who = f"server process {pid} (login pgdefect, a report, idle in trans"
    assert who in message
    assert digests(database) == before
    assert upgrade(database).sql_files


def test_two_upgrades_wait_for_each_other(database: Database) -> None:
    with database.begin() as connection:
        connection.execute(
            text("SELECT pg_advisory_xact_lock(hashtextextended('pgdefect db upgrade', 0))")
        )
        other = Database(database.url)
        with pytest.raises(Busy, match=r"after 0\.5 seconds.*login pgdefect, pgdefect, idle"):
            upgrade(other, lock_wait=0.5)
        other.dispose()
    assert upgrade(database).sql_files == ()
