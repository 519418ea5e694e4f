"""Inspections are events that are only ever added; when a photograph was taken."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

EVENT_TRIGGER = """
CREATE FUNCTION pgdefect.name_inspection_event() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog
AS $$
BEGIN
    new.inspected_at := coalesce(new.inspected_at, new.created_at);
    new.event := coalesce(new.event, CASE
        WHEN EXISTS (SELECT FROM pgdefect.inspection s WHERE s.image_id = new.image_id)
        THEN 're-inspection' ELSE 'inspection' END);
    RETURN new;
END
$$;
COMMENT ON FUNCTION pgdefect.name_inspection_event IS
'Names an inspection that does not say what event it is, and dates the look as the row.';
CREATE TRIGGER name_inspection_event BEFORE INSERT ON pgdefect.inspection
FOR EACH ROW WHEN (new.event IS NULL OR new.inspected_at IS NULL)
EXECUTE FUNCTION pgdefect.name_inspection_event();
"""

# Up to here an inspection was renewed in place, and a re-judgement dated a microsecond after
# the inspection that it rests on.
NAME_EVENTS = """
UPDATE pgdefect.inspection s
SET inspected_at = s.created_at,
    event = CASE WHEN n.place = 1 THEN 'inspection'
                 WHEN n.rejudged THEN 're-judgement'
                 ELSE 're-inspection' END
FROM (
    SELECT id,
           row_number() OVER (PARTITION BY image_id ORDER BY created_at, id) AS place,
           lag(raw_score) OVER by_detector = raw_score
               AND created_at - lag(created_at) OVER by_detector = interval '1 microsecond'
               AS rejudged
    FROM pgdefect.inspection
    WINDOW by_detector AS (PARTITION BY image_id, detector_id ORDER BY created_at, id)
) n
WHERE n.id = s.id
"""


def upgrade() -> None:
    when = sa.DateTime(timezone=True)
    op.add_column("image", sa.Column("taken_at", when, nullable=True), schema="pgdefect")
    for column, kind in (
        ("event", sa.Text()),
        ("inspected_at", when),
        ("station", sa.Text()),
        ("event_key", sa.Text()),
    ):
        op.add_column("inspection", sa.Column(column, kind, nullable=True), schema="pgdefect")
    op.drop_constraint(
        op.f("uq_inspection_detector_id_image_id_threshold"), "inspection", schema="pgdefect"
    )
    op.drop_index("ix_inspection_image_id_created_at", "inspection", schema="pgdefect")
    op.execute(NAME_EVENTS)
    op.alter_column("inspection", "event", nullable=False, schema="pgdefect")
    op.alter_column("inspection", "inspected_at", nullable=False, schema="pgdefect")
    op.alter_column(
        "inspection", "station", server_default=sa.text("session_user"), schema="pgdefect"
    )
    op.create_check_constraint(
        op.f("ck_inspection_event_known"),
        "inspection",
        "event IN ('inspection', 're-inspection', 're-judgement')",
        schema="pgdefect",
    )
    op.create_check_constraint(
        op.f("ck_inspection_event_key_length"),
        "inspection",
        "length(event_key) BETWEEN 1 AND 200",
        schema="pgdefect",
    )
    newest = ["inspected_at", "created_at", "id"]
    op.create_index("ix_inspection_image", "inspection", ["image_id", *newest], schema="pgdefect")
    op.create_index(
        "ix_inspection_detector_image",
        "inspection",
        ["detector_id", "image_id", *newest],
        schema="pgdefect",
    )
    op.create_index(
        "uq_inspection_event_key_image_id",
        "inspection",
        ["event_key", "image_id"],
        unique=True,
        schema="pgdefect",
        postgresql_where=sa.text("event_key IS NOT NULL"),
    )
    op.create_index(
        "uq_inspection_first",
        "inspection",
        ["image_id"],
        unique=True,
        schema="pgdefect",
        postgresql_where=sa.text("event = 'inspection'"),
    )
    op.execute(EVENT_TRIGGER)
    op.create_table(
        "inspection_run",
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("detector_id", sa.BigInteger(), nullable=False),
        sa.Column("event_key", sa.Text(), nullable=False),
        sa.Column("started_at", when, server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["detector_id"],
            ["pgdefect.detector.id"],
            name=op.f("fk_inspection_run_detector_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_inspection_run")),
        schema="pgdefect",
    )
    op.create_index(
        "ix_inspection_run_detector_id", "inspection_run", ["detector_id"], schema="pgdefect"
    )
