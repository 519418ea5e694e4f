"""Defect embeddings and regions, raw bank vectors, kept patches, votes, reviews."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from pgvector.sqlalchemy import HALFVEC
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

REVIEW_TRIGGER = """
CREATE FUNCTION pgdefect.take_over_review() RETURNS trigger
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog
AS $$
BEGIN
    UPDATE pgdefect.image i
    SET reviewed_label = r.label, reviewed_defect_type = r.defect_type
    FROM (SELECT coalesce(new.image_id, old.image_id) AS image_id) changed
    LEFT JOIN LATERAL (
        SELECT * FROM pgdefect.review r WHERE r.image_id = changed.image_id
        ORDER BY r.created_at DESC, r.id DESC LIMIT 1
    ) r ON true
    WHERE i.id = changed.image_id;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION pgdefect.take_over_review IS
'Keeps image.reviewed_label and reviewed_defect_type at what the newest review says.';
CREATE TRIGGER take_over_review AFTER INSERT OR UPDATE OR DELETE ON pgdefect.review
FOR EACH ROW EXECUTE FUNCTION pgdefect.take_over_review();
"""


def _id() -> sa.Column[int]:
    return sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False)


def _created_at() -> sa.Column[object]:
    return sa.Column(
        "created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
    )


def _foreign_key(table: str, column: str, other: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        [column], [f"pgdefect.{other}.id"], name=op.f(f"fk_{table}_{column}"), ondelete="CASCADE"
    )


def upgrade() -> None:
    op.create_table(
        "defect_space",
        sa.Column("extractor_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("embedding_dim", sa.INTEGER(), nullable=False),
        sa.Column("parameters", sa.LargeBinary(), nullable=False),
        sa.Column("onnx", sa.LargeBinary(), nullable=True),
        sa.Column("onnx_sha256", sa.Text(), nullable=True),
        sa.Column("settings", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        _created_at(),
        sa.CheckConstraint("embedding_dim > 0", name=op.f("ck_defect_space_dim_positive")),
        _foreign_key("defect_space", "extractor_id", "extractor"),
        sa.PrimaryKeyConstraint("extractor_id", name=op.f("pk_defect_space")),
        schema="pgdefect",
    )
    op.create_table(
        "defect_embedding",
        sa.Column("extractor_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("image_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("detector_id", sa.BigInteger(), nullable=False),
        sa.Column("embedding", HALFVEC(), nullable=False),
        _foreign_key("defect_embedding", "image_id", "image"),
        _foreign_key("defect_embedding", "detector_id", "detector"),
        sa.PrimaryKeyConstraint("extractor_id", "image_id", name=op.f("pk_defect_embedding")),
        schema="pgdefect",
        postgresql_partition_by="LIST (extractor_id)",
    )
    op.execute("CREATE SEQUENCE pgdefect.defect_region_id_seq")
    op.create_table(
        "defect_region",
        sa.Column("extractor_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column(
            "id",
            sa.BigInteger(),
            server_default=sa.text("nextval('pgdefect.defect_region_id_seq'::regclass)"),
            autoincrement=False,
            nullable=False,
        ),
        sa.Column("image_id", sa.BigInteger(), nullable=False),
        sa.Column("detector_id", sa.BigInteger(), nullable=False),
        sa.Column("rank", sa.SmallInteger(), nullable=False),
        *[
            sa.Column(name, sa.INTEGER(), nullable=False)
            for name in ("x", "y", "width", "height", "num_patches")
        ],
        sa.Column("area", sa.REAL(), nullable=False),
        sa.Column("peak_score", sa.REAL(), nullable=False),
        sa.Column("mean_score", sa.REAL(), nullable=False),
        sa.Column("embedding", HALFVEC(), nullable=False),
        sa.CheckConstraint(
            "x >= 0 AND y >= 0 AND width > 0 AND height > 0",
            name=op.f("ck_defect_region_box_positive"),
        ),
        _foreign_key("defect_region", "image_id", "image"),
        _foreign_key("defect_region", "detector_id", "detector"),
        sa.PrimaryKeyConstraint("extractor_id", "id", name=op.f("pk_defect_region")),
        schema="pgdefect",
        postgresql_partition_by="LIST (extractor_id)",
    )
    op.execute("ALTER SEQUENCE pgdefect.defect_region_id_seq OWNED BY pgdefect.defect_region.id")
    for table in ("defect_embedding", "defect_region"):
        for column in ("image_id", "detector_id"):
            op.create_index(f"ix_{table}_{column}", table, [column], schema="pgdefect")
    op.create_table(
        "memory_bank_raw",
        sa.Column("bank_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("position", sa.INTEGER(), autoincrement=False, nullable=False),
        sa.Column("embedding", HALFVEC(), nullable=False),
        sa.PrimaryKeyConstraint("bank_id", "position", name=op.f("pk_memory_bank_raw")),
        schema="pgdefect",
        postgresql_partition_by="LIST (bank_id)",
    )
    op.create_table(
        "image_patches",
        sa.Column("extractor_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("image_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("rows", sa.SmallInteger(), nullable=False),
        sa.Column("cols", sa.SmallInteger(), nullable=False),
        sa.Column("embeddings", postgresql.ARRAY(HALFVEC()), nullable=False),
        sa.CheckConstraint(
            "cardinality(embeddings) = rows * cols", name=op.f("ck_image_patches_grid_filled")
        ),
        _foreign_key("image_patches", "extractor_id", "extractor"),
        _foreign_key("image_patches", "image_id", "image"),
        sa.PrimaryKeyConstraint("extractor_id", "image_id", name=op.f("pk_image_patches")),
        schema="pgdefect",
    )
    op.create_index("ix_image_patches_image_id", "image_patches", ["image_id"], schema="pgdefect")
    # Half-precision patches do not compress: spare the attempt.
    op.execute("ALTER TABLE pgdefect.image_patches ALTER COLUMN embeddings SET STORAGE EXTERNAL")
    op.create_table(
        "search_setting",
        sa.Column("extractor_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("searched", sa.Text(), nullable=False),
        sa.Column("ef_search", sa.INTEGER(), nullable=False),
        sa.Column("recall", sa.Double(), nullable=False),
        sa.Column(
            "checked_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.CheckConstraint(
            "searched IN ('picture', 'defect', 'region')",
            name=op.f("ck_search_setting_searched_known"),
        ),
        sa.CheckConstraint(
            "ef_search BETWEEN 1 AND 1000", name=op.f("ck_search_setting_ef_search_range")
        ),
        _foreign_key("search_setting", "extractor_id", "extractor"),
        sa.PrimaryKeyConstraint("extractor_id", "searched", name=op.f("pk_search_setting")),
        schema="pgdefect",
    )
    for column, kind in (
        ("vote", postgresql.JSONB(astext_type=sa.Text())),
        ("probable_defect_type", sa.Text()),
    ):
        op.add_column("inspection", sa.Column(column, kind, nullable=True), schema="pgdefect")

    op.add_column(
        "memory_bank", sa.Column("patch_score_std", sa.Double(), nullable=True), schema="pgdefect"
    )
    op.create_table(
        "review",
        _id(),
        sa.Column("image_id", sa.BigInteger(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("defect_type", sa.Text(), nullable=True),
        sa.Column("note", sa.Text(), nullable=True),
        sa.Column("reviewer", sa.Text(), server_default=sa.text("session_user"), nullable=False),
        _created_at(),
        sa.CheckConstraint("label IN ('normal', 'anomalous')", name=op.f("ck_review_label_known")),
        sa.CheckConstraint(
            "defect_type IS NULL OR label = 'anomalous'", name=op.f("ck_review_defect_is_anomalous")
        ),
        _foreign_key("review", "image_id", "image"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_review")),
        schema="pgdefect",
    )
    op.create_index(
        "ix_review_image_id_created_at", "review", ["image_id", "created_at"], schema="pgdefect"
    )
    for name in ("reviewed_label", "reviewed_defect_type"):
        op.add_column("image", sa.Column(name, sa.Text(), nullable=True), schema="pgdefect")
    op.create_check_constraint(
        op.f("ck_image_reviewed_label_known"),
        "image",
        "reviewed_label IN ('normal', 'anomalous')",
        schema="pgdefect",
    )
    op.execute(
        "ALTER TABLE pgdefect.image "
        "ADD known_label text GENERATED ALWAYS AS (coalesce(reviewed_label, label)) STORED, "
        "ADD known_defect_type text GENERATED ALWAYS AS "
        "(CASE WHEN reviewed_label IS NULL THEN defect_type ELSE reviewed_defect_type END) STORED"
    )
    op.execute(REVIEW_TRIGGER)
    for columns in (["category_id", "known_defect_type"], ["category_id", "group_name"]):
        op.create_index(f"ix_image_{'_'.join(columns)}", "image", columns, schema="pgdefect")
    op.create_index("ix_image_created_at", "image", ["created_at"], schema="pgdefect")
    op.create_index(
        "ix_image_attributes",
        "image",
        ["attributes"],
        schema="pgdefect",
        postgresql_using="gin",
        postgresql_ops={"attributes": "jsonb_path_ops"},
    )
    _index_image_embeddings_in_single_precision()


def _index_image_embeddings_in_single_precision() -> None:
    """A halfvec index rounds its unit vectors once more and ranks by other numbers."""
    rows = op.get_bind().execute(
        sa.text(
            "SELECT e.id, e.embedding_dim FROM pgdefect.extractor e "
            "WHERE e.embedding_dim <= 2000 "
            "AND to_regclass('pgdefect.image_embedding_' || e.id) IS NOT NULL ORDER BY e.id"
        )
    )
    for extractor_id, dim in rows.all():
        name = f"image_embedding_{extractor_id}"
        op.execute(f"DROP INDEX IF EXISTS pgdefect.{name}_hnsw")
        op.execute(
            f"CREATE INDEX {name}_hnsw ON pgdefect.{name} "
            f"USING hnsw ((embedding::vector({dim})) vector_cosine_ops)"
        )
