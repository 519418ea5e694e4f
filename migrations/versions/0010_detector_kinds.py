"""Kinds of detectors are a table in the code; the database asks only that a kind is a word."""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        ALTER TABLE pgdefect.detector DROP CONSTRAINT ck_detector_kind_known,
            ADD CONSTRAINT ck_detector_kind_word CHECK (kind ~ '^[a-z][a-z0-9_]{0,39}$')""")
