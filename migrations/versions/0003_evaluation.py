"""Thresholds with their history, evaluations, simulated images, detectors without a bank."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "detector_threshold",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("detector_id", sa.BigInteger(), nullable=False),
        sa.Column("threshold", sa.Double(), nullable=False),
        sa.Column("score_center", sa.Double(), nullable=False),
        sa.Column("rule", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("set_by", sa.Text(), server_default=sa.text("current_user"), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.CheckConstraint(
            "threshold > score_center", name=op.f("ck_detector_threshold_above_center")
        ),
        sa.ForeignKeyConstraint(
            ["detector_id"],
            ["pgdefect.detector.id"],
            name=op.f("fk_detector_threshold_detector_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_detector_threshold")),
        schema="pgdefect",
    )
    op.create_index(
        "ix_detector_threshold_detector_id",
        "detector_threshold",
        ["detector_id"],
        schema="pgdefect",
    )
    op.execute(
        "INSERT INTO pgdefect.detector_threshold "
        "(detector_id, threshold, score_center, rule, created_at) "
        "SELECT id, threshold, score_center, threshold_rule, created_at "
        "FROM pgdefect.detector ORDER BY id"
    )
    op.create_table(
        "holdout_score",
        sa.Column("detector_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("image_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("raw_score", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["detector_id"],
            ["pgdefect.detector.id"],
            name=op.f("fk_holdout_score_detector_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["image_id"],
            ["pgdefect.image.id"],
            name=op.f("fk_holdout_score_image_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("detector_id", "image_id", name=op.f("pk_holdout_score")),
        schema="pgdefect",
    )
    op.create_index("ix_holdout_score_image_id", "holdout_score", ["image_id"], schema="pgdefect")
    op.create_table(
        "evaluation",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("detector_id", sa.BigInteger(), nullable=False),
        sa.Column("threshold", sa.Double(), nullable=False),
        sa.Column("split", sa.Text(), nullable=False),
        sa.Column("normal_images", sa.INTEGER(), nullable=False),
        sa.Column("anomalous_images", sa.INTEGER(), nullable=False),
        sa.Column("metrics", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("settings", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["detector_id"],
            ["pgdefect.detector.id"],
            name=op.f("fk_evaluation_detector_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_evaluation")),
        schema="pgdefect",
    )
    op.create_index("ix_evaluation_detector_id", "evaluation", ["detector_id"], schema="pgdefect")
    op.add_column(
        "image",
        sa.Column("simulation", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        schema="pgdefect",
    )
    op.drop_constraint(op.f("ck_image_split_known"), "image", schema="pgdefect")
    op.create_check_constraint(
        op.f("ck_image_split_known"),
        "image",
        "split IN ('train', 'test', 'production', 'simulated')",
        schema="pgdefect",
    )
    op.create_check_constraint(
        op.f("ck_image_simulated_says_how"),
        "image",
        "(split = 'simulated') = (simulation IS NOT NULL)",
        schema="pgdefect",
    )
    op.drop_constraint(op.f("ck_detector_kind_known"), "detector", schema="pgdefect")
    op.create_check_constraint(
        op.f("ck_detector_kind_known"),
        "detector",
        "kind IN ('patchcore', 'efficient_ad')",
        schema="pgdefect",
    )
    op.create_table(
        "detector_model",
        sa.Column("detector_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("onnx", sa.LargeBinary(), nullable=False),
        sa.Column("onnx_sha256", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["detector_id"],
            ["pgdefect.detector.id"],
            name=op.f("fk_detector_model_detector_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("detector_id", name=op.f("pk_detector_model")),
        schema="pgdefect",
    )
    op.add_column(
        "memory_bank",
        sa.Column("worst_share", sa.Double(), server_default=sa.text("0"), nullable=False),
        schema="pgdefect",
    )
    op.create_check_constraint(
        op.f("ck_memory_bank_worst_share_range"),
        "memory_bank",
        "worst_share BETWEEN 0 AND 1",
        schema="pgdefect",
    )
    op.alter_column("inspection", "nearest_positions", nullable=True, schema="pgdefect")
    op.drop_constraint(op.f("ck_inspection_search_known"), "inspection", schema="pgdefect")
    op.create_check_constraint(
        op.f("ck_inspection_search_known"),
        "inspection",
        "search IN ('hnsw', 'fast', 'exact', 'network')",
        schema="pgdefect",
    )
