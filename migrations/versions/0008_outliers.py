"""Held-out images that score far outside the rest do not set the threshold.

Revision ID: 0008
Revises: 0007
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "holdout_score",
        sa.Column("outlier", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        schema="pgdefect",
    )


def downgrade() -> None:
    op.drop_column("holdout_score", "outlier", schema="pgdefect")
