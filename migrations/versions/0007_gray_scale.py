"""The gray scale of a category: which value is white in images that are not 8-bit."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "category",
        sa.Column("gray_scale", postgresql.JSONB(), nullable=True),
        schema="pgdefect",
    )
    op.add_column(
        "category",
        sa.Column(
            "gray_scale_settled", sa.Boolean(), server_default=sa.text("false"), nullable=False
        ),
        schema="pgdefect",
    )
    # What images were read by before there was a scale; a float file decided for itself.
    op.execute(
        "UPDATE pgdefect.category c SET gray_scale = "
        """'{"uint8": 255, "uint16": 65535, "int32": 65535, "netpbm16": 65535, """
        """"float32": null}', gray_scale_settled = true """
        "WHERE EXISTS (SELECT FROM pgdefect.image i WHERE i.category_id = c.id)"
    )
