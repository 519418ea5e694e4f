"""Each detector's own statistics for defect embeddings."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "memory_bank",
        sa.Column("defect_parameters", sa.LargeBinary(), nullable=True),
        schema="pgdefect",
    )
    op.add_column(
        "memory_bank",
        sa.Column("defect_settings", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        schema="pgdefect",
    )
