"""An audit trail that is only added to; reviews can be withdrawn; JSON has the shape views read.

A later migration that changes rows of ``detector``, ``category``, ``image`` or
``detector_threshold`` and alters the same table runs ``SET CONSTRAINTS ALL IMMEDIATE`` in between:
the trail is written at the end of the transaction.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

TRAIL = """
CREATE FUNCTION pgdefect.audit_hash(
    previous text, number bigint, at timestamptz, who text, action text, object text,
    before jsonb, after jsonb
) RETURNS text
LANGUAGE sql
IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog
AS $$
    SELECT encode(sha256(convert_to(
        previous || jsonb_build_array(
            number, extract(epoch FROM at), who, action, object, before, after)::text,
        'UTF8')), 'hex')
$$;
COMMENT ON FUNCTION pgdefect.audit_hash IS
'The hash of an entry of the audit trail: of what it says and of the hash before it.';

CREATE FUNCTION pgdefect.record_audit(action text, object text, before jsonb, after jsonb)
RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog
AS $$
DECLARE
    head pgdefect.audit_head;
    at timestamptz := clock_timestamp();
BEGIN
    -- One after the other: each entry holds the hash of the one before it.
    SELECT * INTO STRICT head FROM pgdefect.audit_head FOR UPDATE;
    head.number := head.number + 1;
    head.hash := pgdefect.audit_hash(
        head.hash, head.number, at, session_user, action, object, before, after);
    INSERT INTO pgdefect.audit (number, at, who, action, object, before, after, hash)
    VALUES (head.number, at, session_user, action, object, before, after, head.hash);
    UPDATE pgdefect.audit_head SET number = head.number, hash = head.hash;
    RETURN head.number;
END
$$;
COMMENT ON FUNCTION pgdefect.record_audit IS
'Adds an entry to the audit trail. Used by triggers and by the owner''s commands.';

CREATE FUNCTION pgdefect.audit_change() RETURNS trigger
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog
AS $$
DECLARE
    before jsonb;
    after jsonb;
    kept text[];
    action text;
    object text;
BEGIN
    IF tg_op <> 'INSERT' THEN
        before := to_jsonb(old);
    END IF;
    IF tg_op <> 'DELETE' THEN
        after := to_jsonb(new);
    END IF;
    CASE tg_table_name
    WHEN 'detector' THEN
        kept := '{category_id,kind,version,state,active,threshold,threshold_rule,score_center}';
        object := 'detector ' || (coalesce(after, before)->>'id');
        action := CASE tg_op
            WHEN 'INSERT' THEN 'store detector'
            WHEN 'DELETE' THEN 'delete detector'
            ELSE concat_ws(', ',
                CASE WHEN before->'threshold' <> after->'threshold'
                       OR before->'threshold_rule' <> after->'threshold_rule'
                       OR before->'score_center' <> after->'score_center'
                     THEN 'set threshold' END,
                CASE WHEN before->'state' <> after->'state'
                     THEN CASE after->>'state' WHEN 'retired' THEN 'retire'
                               ELSE 'take back' END END,
                CASE WHEN before->'active' <> after->'active'
                     THEN CASE WHEN (after->>'active')::boolean THEN 'activate'
                               ELSE 'deactivate' END END) END;
    WHEN 'detector_threshold' THEN
        -- Of a deleted detector the history goes along.
        IF tg_op = 'DELETE' AND NOT EXISTS (
            SELECT FROM pgdefect.detector d WHERE d.id = (before->>'detector_id')::bigint) THEN
            RETURN NULL;
        END IF;
        kept := '{id,detector_id,threshold,score_center,rule,set_by,created_at}';
        object := 'detector ' || (before->>'detector_id');
        action := 'rewrite threshold history';
    WHEN 'review' THEN
        kept := '{id,label,defect_type,note,reviewer,created_at}';
        object := 'image ' || (coalesce(after, before)->>'image_id');
        action := CASE tg_op WHEN 'INSERT' THEN 'review' ELSE 'rewrite review' END;
    WHEN 'review_withdrawal' THEN
        kept := '{review_id,note,withdrawn_by,created_at}';
        object := 'review ' || (coalesce(after, before)->>'review_id');
        action := CASE tg_op WHEN 'INSERT' THEN 'withdraw review' ELSE 'rewrite withdrawal' END;
    WHEN 'image' THEN
        kept := '{category_id,path,sha256,retired_at}';
        object := 'image ' || (after->>'id');
        action := CASE WHEN after->>'retired_at' IS NULL THEN 'take image back'
                       ELSE 'retire image' END;
    WHEN 'category' THEN
        kept := '{name,retired_at}';
        object := 'category ' || (coalesce(after, before)->>'id');
        action := CASE WHEN tg_op = 'DELETE' THEN 'delete category'
                       WHEN before->'name' <> after->'name' THEN 'rename category'
                       WHEN after->>'retired_at' IS NULL THEN 'take category back'
                       ELSE 'retire category' END;
    END CASE;
    PERFORM pgdefect.record_audit(action, object,
        (SELECT jsonb_object_agg(key, value) FROM jsonb_each(before) WHERE key = ANY (kept)),
        (SELECT jsonb_object_agg(key, value) FROM jsonb_each(after) WHERE key = ANY (kept)));
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION pgdefect.audit_change IS
'Adds a change of one row to the audit trail.';

CREATE FUNCTION pgdefect.audit_deletion() RETURNS trigger
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog
AS $$
DECLARE
    summary jsonb;
BEGIN
    IF tg_table_name = 'image' THEN
        SELECT jsonb_build_object(
            'images', count(*), 'category_ids', jsonb_agg(DISTINCT g.category_id),
            'first', jsonb_agg(jsonb_build_array(g.id, g.path, g.sha256) ORDER BY g.id)
                     FILTER (WHERE g.place <= 100))
        INTO summary FROM (SELECT *, row_number() OVER (ORDER BY id) AS place FROM gone) g
        HAVING count(*) > 0;
    ELSE
        SELECT jsonb_build_object(
            'reviews', count(*),
            'first', jsonb_agg(to_jsonb(g) ORDER BY g.id) FILTER (WHERE g.place <= 100))
        INTO summary FROM (SELECT *, row_number() OVER (ORDER BY id) AS place FROM gone) g
        HAVING count(*) > 0;
    END IF;
    IF summary IS NOT NULL THEN
        PERFORM pgdefect.record_audit(
            'delete ' || tg_table_name || 's', tg_table_name || 's', summary, NULL);
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION pgdefect.audit_deletion IS
'Adds the deletion of images or reviews to the audit trail, a statement an entry.';

CREATE FUNCTION pgdefect.refuse_audit_change() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog
AS $$
BEGIN
    RAISE EXCEPTION 'the audit trail is only added to: % of % is refused',
        lower(tg_op), tg_table_name
        USING ERRCODE = 'PD409',
              HINT = 'SELECT * FROM defect.audit_trail shows it.';
END
$$;
COMMENT ON FUNCTION pgdefect.refuse_audit_change IS
'Refuses to change or delete entries of the audit trail.';
"""

TRIGGERS = """
CREATE TRIGGER refuse_audit_change BEFORE UPDATE OR DELETE OR TRUNCATE ON pgdefect.audit
FOR EACH STATEMENT EXECUTE FUNCTION pgdefect.refuse_audit_change();
CREATE TRIGGER refuse_audit_change BEFORE INSERT OR DELETE OR TRUNCATE ON pgdefect.audit_head
FOR EACH STATEMENT EXECUTE FUNCTION pgdefect.refuse_audit_change();

CREATE CONSTRAINT TRIGGER audit_insert AFTER INSERT OR DELETE ON pgdefect.detector
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION pgdefect.audit_change();
CREATE CONSTRAINT TRIGGER audit_update AFTER UPDATE ON pgdefect.detector
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
WHEN (old.threshold IS DISTINCT FROM new.threshold
      OR old.threshold_rule IS DISTINCT FROM new.threshold_rule
      OR old.score_center IS DISTINCT FROM new.score_center
      OR old.state IS DISTINCT FROM new.state OR old.active IS DISTINCT FROM new.active)
EXECUTE FUNCTION pgdefect.audit_change();
CREATE CONSTRAINT TRIGGER audit_rewrite AFTER UPDATE OR DELETE ON pgdefect.detector_threshold
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION pgdefect.audit_change();
CREATE CONSTRAINT TRIGGER audit_insert AFTER INSERT OR UPDATE ON pgdefect.review
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION pgdefect.audit_change();
CREATE CONSTRAINT TRIGGER audit_insert AFTER INSERT OR UPDATE ON pgdefect.review_withdrawal
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION pgdefect.audit_change();
CREATE CONSTRAINT TRIGGER audit_retired AFTER UPDATE ON pgdefect.image
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
WHEN (old.retired_at IS DISTINCT FROM new.retired_at) EXECUTE FUNCTION pgdefect.audit_change();
CREATE CONSTRAINT TRIGGER audit_update AFTER UPDATE ON pgdefect.category
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
WHEN (old.name IS DISTINCT FROM new.name OR old.retired_at IS DISTINCT FROM new.retired_at)
EXECUTE FUNCTION pgdefect.audit_change();
CREATE CONSTRAINT TRIGGER audit_delete AFTER DELETE ON pgdefect.category
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION pgdefect.audit_change();
CREATE TRIGGER audit_deletion AFTER DELETE ON pgdefect.image
REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION pgdefect.audit_deletion();
CREATE TRIGGER audit_deletion AFTER DELETE ON pgdefect.review
REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION pgdefect.audit_deletion();
"""

# The newest review that was not withdrawn is in force.
REVIEWS = """
CREATE OR REPLACE FUNCTION pgdefect.take_over_review() RETURNS trigger
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog
AS $$
DECLARE
    changed bigint;
BEGIN
    IF tg_table_name = 'review' THEN
        changed := coalesce(new.image_id, old.image_id);
    ELSE
        SELECT v.image_id INTO changed FROM pgdefect.review v
        WHERE v.id = coalesce(new.review_id, old.review_id);
    END IF;
    UPDATE pgdefect.image i
    SET reviewed_label = r.label, reviewed_defect_type = r.defect_type
    FROM (SELECT changed AS image_id) c
    LEFT JOIN LATERAL (
        SELECT * FROM pgdefect.review v WHERE v.image_id = c.image_id
          AND NOT EXISTS (SELECT FROM pgdefect.review_withdrawal w WHERE w.review_id = v.id)
        ORDER BY v.created_at DESC, v.id DESC LIMIT 1
    ) r ON true
    WHERE i.id = c.image_id;
    RETURN NULL;
END
$$;
CREATE TRIGGER take_over_review AFTER INSERT OR DELETE ON pgdefect.review_withdrawal
FOR EACH ROW EXECUTE FUNCTION pgdefect.take_over_review();
"""

# What was written before in another shape is kept: wrapped, or in the trail.
CHECKS = """
UPDATE pgdefect.evaluation
SET metrics = CASE jsonb_typeof(metrics) WHEN 'object' THEN metrics
                   ELSE jsonb_build_object('malformed', metrics) END,
    settings = CASE jsonb_typeof(settings) WHEN 'object' THEN settings
                    ELSE jsonb_build_object('malformed', settings) END
WHERE jsonb_typeof(metrics) <> 'object' OR jsonb_typeof(settings) <> 'object';
ALTER TABLE pgdefect.evaluation ADD CONSTRAINT ck_evaluation_metrics_object
CHECK (jsonb_typeof(metrics) = 'object' AND jsonb_typeof(settings) = 'object');

SELECT pgdefect.record_audit('remove malformed vote', 'inspection ' || s.id, s.vote, NULL)
FROM pgdefect.inspection s WHERE NOT {shape};
UPDATE pgdefect.inspection s SET vote = NULL WHERE NOT {shape};
ALTER TABLE pgdefect.inspection ADD CONSTRAINT ck_inspection_vote_shape CHECK {shape};
""".format(
    shape="(vote IS NULL OR (jsonb_typeof(vote) = 'object' "
    "AND jsonb_typeof(vote->'counts') = 'object' "
    "AND jsonb_typeof(vote->'k') = 'number' AND jsonb_typeof(vote->'support') = 'number' "
    "AND jsonb_typeof(vote->'needed') = 'number') IS TRUE)"
)


def upgrade() -> None:
    when = sa.DateTime(timezone=True)
    op.create_table(
        "audit",
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at", when, nullable=False),
        sa.Column("who", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("object", sa.Text(), nullable=False),
        sa.Column("before", JSONB(), nullable=True),
        sa.Column("after", JSONB(), nullable=True),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_audit")),
        schema="pgdefect",
    )
    op.create_table(
        "audit_head",
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_audit_head")),
        schema="pgdefect",
    )
    op.create_table(
        "review_withdrawal",
        sa.Column("review_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("note", sa.Text(), nullable=True),
        sa.Column(
            "withdrawn_by", sa.Text(), server_default=sa.text("session_user"), nullable=False
        ),
        sa.Column("created_at", when, server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["review_id"],
            ["pgdefect.review.id"],
            name=op.f("fk_review_withdrawal_review_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("review_id", name=op.f("pk_review_withdrawal")),
        schema="pgdefect",
    )
    op.execute("INSERT INTO pgdefect.audit_head (number, hash) VALUES (0, '')")
    op.alter_column(
        "detector_threshold", "set_by", server_default=sa.text("session_user"), schema="pgdefect"
    )
    op.execute(TRAIL)
    op.execute(REVIEWS)
    op.execute(CHECKS)
    # What stands here today, so that a later change past the trail can be told.
    op.execute(
        "SELECT pgdefect.record_audit('found at upgrade', 'detector ' || d.id, NULL, "
        "jsonb_build_object('category_id', d.category_id, 'kind', d.kind, 'version', d.version, "
        "'state', d.state, 'active', d.active, 'threshold', d.threshold, "
        "'threshold_rule', d.threshold_rule, 'score_center', d.score_center)) "
        "FROM (SELECT * FROM pgdefect.detector ORDER BY id) d"
    )
    op.execute(TRIGGERS)
