"""Which type a memory bank's index holds: a halfvec index rounds its vectors once more."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "memory_bank", sa.Column("indexed_type", sa.Text(), nullable=True), schema="pgdefect"
    )
    # Banks trained before keep the index they have.
    op.execute(
        "UPDATE pgdefect.memory_bank SET indexed_type = "
        "CASE precision WHEN 'half' THEN 'halfvec' ELSE 'vector' END"
    )
    op.alter_column("memory_bank", "indexed_type", nullable=False, schema="pgdefect")
    op.create_check_constraint(
        op.f("ck_memory_bank_indexed_type_known"),
        "memory_bank",
        "indexed_type IN ('vector', 'halfvec')",
        schema="pgdefect",
    )
