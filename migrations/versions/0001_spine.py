"""Categories, images, extractors, detectors, memory banks, embeddings, inspections."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from pgvector.sqlalchemy import HALFVEC, VECTOR
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "category",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("retired_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("length(name) BETWEEN 1 AND 100", name=op.f("ck_category_name_length")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_category")),
        sa.UniqueConstraint("name", name=op.f("uq_category_name")),
        schema="pgdefect",
    )
    op.create_table(
        "extractor",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("backbone", sa.Text(), nullable=False),
        sa.Column("layers", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("preprocessing", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("weights_source", sa.Text(), nullable=False),
        sa.Column("weights_sha256", sa.Text(), nullable=False),
        sa.Column("embedding_dim", sa.INTEGER(), nullable=False),
        sa.Column("rows", sa.INTEGER(), nullable=False),
        sa.Column("cols", sa.INTEGER(), nullable=False),
        sa.Column("onnx", sa.LargeBinary(), nullable=False),
        sa.Column("onnx_sha256", sa.Text(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.CheckConstraint(
            "embedding_dim > 0 AND rows > 0 AND cols > 0", name=op.f("ck_extractor_shape_positive")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_extractor")),
        sa.UniqueConstraint("fingerprint", name=op.f("uq_extractor_fingerprint")),
        schema="pgdefect",
    )
    op.create_table(
        "image_root",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_image_root")),
        sa.UniqueConstraint("path", name=op.f("uq_image_root_path")),
        schema="pgdefect",
    )
    op.create_table(
        "memory_bank_patch",
        sa.Column("bank_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("position", sa.INTEGER(), autoincrement=False, nullable=False),
        sa.Column("image_id", sa.BigInteger(), nullable=False),
        sa.Column("row", sa.SmallInteger(), nullable=False),
        sa.Column("col", sa.SmallInteger(), nullable=False),
        sa.Column("embedding", VECTOR(), nullable=False),
        sa.PrimaryKeyConstraint("bank_id", "position", name=op.f("pk_memory_bank_patch")),
        schema="pgdefect",
        postgresql_partition_by="LIST (bank_id)",
    )
    op.create_table(
        "sql_file",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column(
            "applied_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_sql_file")),
        schema="pgdefect",
    )
    op.create_table(
        "detector",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("category_id", sa.BigInteger(), nullable=False),
        sa.Column("extractor_id", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("version", sa.INTEGER(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("threshold", sa.Double(), nullable=False),
        sa.Column("threshold_rule", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("score_center", sa.Double(), nullable=False),
        sa.Column("settings", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("metrics", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("library_versions", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.CheckConstraint("kind IN ('patchcore')", name=op.f("ck_detector_kind_known")),
        sa.CheckConstraint(
            "state = 'ready' OR NOT active", name=op.f("ck_detector_retired_is_inactive")
        ),
        sa.CheckConstraint("state IN ('ready', 'retired')", name=op.f("ck_detector_state_known")),
        sa.CheckConstraint(
            "threshold > score_center", name=op.f("ck_detector_threshold_above_center")
        ),
        sa.ForeignKeyConstraint(
            ["category_id"], ["pgdefect.category.id"], name=op.f("fk_detector_category_id")
        ),
        sa.ForeignKeyConstraint(
            ["extractor_id"], ["pgdefect.extractor.id"], name=op.f("fk_detector_extractor_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_detector")),
        sa.UniqueConstraint(
            "category_id", "kind", "version", name=op.f("uq_detector_category_id_kind_version")
        ),
        schema="pgdefect",
    )
    op.create_index(
        "ix_detector_extractor_id", "detector", ["extractor_id"], unique=False, schema="pgdefect"
    )
    op.create_index(
        "uq_detector_active",
        "detector",
        ["category_id", "kind"],
        unique=True,
        schema="pgdefect",
        postgresql_where=sa.text("active"),
    )
    op.create_table(
        "image",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("category_id", sa.BigInteger(), nullable=False),
        sa.Column("root_id", sa.BigInteger(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("num_bytes", sa.BigInteger(), nullable=False),
        sa.Column("height", sa.INTEGER(), nullable=False),
        sa.Column("width", sa.INTEGER(), nullable=False),
        sa.Column("split", sa.Text(), nullable=False),
        sa.Column("label", sa.Text(), nullable=True),
        sa.Column("defect_type", sa.Text(), nullable=True),
        sa.Column("mask_path", sa.Text(), nullable=True),
        sa.Column("group_name", sa.Text(), nullable=True),
        sa.Column(
            "attributes",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
        ),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("retired_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "defect_type IS NULL OR label = 'anomalous'", name=op.f("ck_image_defect_is_anomalous")
        ),
        sa.CheckConstraint(
            "jsonb_typeof(attributes) = 'object'", name=op.f("ck_image_attributes_object")
        ),
        sa.CheckConstraint("label IN ('normal', 'anomalous')", name=op.f("ck_image_label_known")),
        sa.CheckConstraint("sha256 ~ '^[0-9a-f]{64}$'", name=op.f("ck_image_sha256_hex")),
        sa.CheckConstraint(
            "split IN ('train', 'test', 'production')", name=op.f("ck_image_split_known")
        ),
        sa.CheckConstraint("width > 0 AND height > 0", name=op.f("ck_image_size_positive")),
        sa.ForeignKeyConstraint(
            ["category_id"], ["pgdefect.category.id"], name=op.f("fk_image_category_id")
        ),
        sa.ForeignKeyConstraint(
            ["root_id"], ["pgdefect.image_root.id"], name=op.f("fk_image_root_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_image")),
        sa.UniqueConstraint(
            "category_id", "root_id", "path", name=op.f("uq_image_category_id_root_id_path")
        ),
        schema="pgdefect",
    )
    op.create_index("ix_image_root_id", "image", ["root_id"], unique=False, schema="pgdefect")
    op.create_index(
        "ix_image_sha256",
        "image",
        ["sha256"],
        unique=False,
        schema="pgdefect",
        postgresql_ops={"sha256": "text_pattern_ops"},
    )
    op.create_table(
        "image_embedding",
        sa.Column("extractor_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("image_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("embedding", HALFVEC(), nullable=False),
        sa.ForeignKeyConstraint(
            ["image_id"],
            ["pgdefect.image.id"],
            name=op.f("fk_image_embedding_image_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("extractor_id", "image_id", name=op.f("pk_image_embedding")),
        schema="pgdefect",
        postgresql_partition_by="LIST (extractor_id)",
    )
    op.create_index(
        "ix_image_embedding_image_id",
        "image_embedding",
        ["image_id"],
        unique=False,
        schema="pgdefect",
    )
    op.create_table(
        "inspection",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("image_id", sa.BigInteger(), nullable=False),
        sa.Column("detector_id", sa.BigInteger(), nullable=False),
        sa.Column("raw_score", sa.Double(), nullable=False),
        sa.Column("normalized_score", sa.Double(), nullable=False),
        sa.Column("threshold", sa.Double(), nullable=False),
        sa.Column(
            "is_anomalous",
            sa.Boolean(),
            sa.Computed("raw_score > threshold", persisted=True),
            nullable=False,
        ),
        sa.Column("worst_row", sa.SmallInteger(), nullable=False),
        sa.Column("worst_col", sa.SmallInteger(), nullable=False),
        sa.Column("anomaly_map", postgresql.ARRAY(sa.REAL(), dimensions=2), nullable=False),
        sa.Column(
            "nearest_positions", postgresql.ARRAY(sa.INTEGER(), dimensions=2), nullable=False
        ),
        sa.Column("search", sa.Text(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.CheckConstraint(
            "search IN ('hnsw', 'fast', 'exact')", name=op.f("ck_inspection_search_known")
        ),
        sa.ForeignKeyConstraint(
            ["detector_id"],
            ["pgdefect.detector.id"],
            name=op.f("fk_inspection_detector_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["image_id"],
            ["pgdefect.image.id"],
            name=op.f("fk_inspection_image_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_inspection")),
        sa.UniqueConstraint(
            "detector_id",
            "image_id",
            "threshold",
            name=op.f("uq_inspection_detector_id_image_id_threshold"),
        ),
        schema="pgdefect",
    )
    op.create_index(
        "ix_inspection_image_id_created_at",
        "inspection",
        ["image_id", "created_at"],
        unique=False,
        schema="pgdefect",
    )
    op.create_table(
        "memory_bank",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("num_images", sa.INTEGER(), nullable=False),
        sa.Column("num_vectors", sa.INTEGER(), nullable=False),
        sa.Column("embedding_dim", sa.INTEGER(), nullable=False),
        sa.Column("precision", sa.Text(), nullable=False),
        sa.Column("metric", sa.Text(), nullable=False),
        sa.Column("operator", sa.Text(), nullable=False),
        sa.Column("transform", sa.Text(), nullable=False),
        sa.Column("transform_mean", postgresql.ARRAY(sa.REAL()), nullable=True),
        sa.Column("transform_components", postgresql.ARRAY(sa.REAL(), dimensions=2), nullable=True),
        sa.Column("transform_constant", sa.Double(), nullable=True),
        sa.Column("coreset_ratio", sa.Double(), nullable=False),
        sa.Column("covering_radius", sa.Double(), nullable=False),
        sa.Column("num_neighbors", sa.INTEGER(), nullable=False),
        sa.Column("ef_search", sa.INTEGER(), nullable=False),
        sa.Column("ef_search_recall", sa.Double(), nullable=False),
        sa.Column("ef_search_fast", sa.INTEGER(), nullable=False),
        sa.CheckConstraint(
            "operator IN ('<=>', '<->')", name=op.f("ck_memory_bank_operator_known")
        ),
        sa.CheckConstraint(
            "precision IN ('half', 'single')", name=op.f("ck_memory_bank_precision_known")
        ),
        sa.CheckConstraint(
            "ef_search BETWEEN 1 AND 1000", name=op.f("ck_memory_bank_ef_search_range")
        ),
        sa.CheckConstraint(
            "ef_search_fast BETWEEN 1 AND ef_search",
            name=op.f("ck_memory_bank_ef_search_fast_range"),
        ),
        sa.ForeignKeyConstraint(
            ["id"], ["pgdefect.detector.id"], name=op.f("fk_memory_bank_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_memory_bank")),
        schema="pgdefect",
    )
