-- The threshold that rejects at most a given share of the images of new normal parts, from the
-- scores of the normal images held out in training (pgdefect.threshold_by_parts).
--
-- with_left_out counts outliers too, and images known to be anomalous since (left_out of
-- pgdefect.holdout_scores), which thresholds are chosen without.
CREATE OR REPLACE FUNCTION pgdefect.holdout_threshold(
    detector bigint, false_reject_rate double precision, with_left_out boolean DEFAULT false
)
RETURNS TABLE (threshold double precision, score_center double precision, rule jsonb)
LANGUAGE plpgsql
STABLE
SET search_path = pg_catalog
AS $$
#variable_conflict use_column
DECLARE
    image_ids bigint[];
    scores double precision[];
BEGIN
    IF false_reject_rate IS NULL OR NOT (false_reject_rate > 0 AND false_reject_rate < 1) THEN
        RAISE EXCEPTION 'the false-reject rate must lie between 0 and 1, not %',
            coalesce(false_reject_rate::text, 'NULL')
            USING ERRCODE = 'PD400', HINT = '0.05 rejects at most one normal image in twenty.';
    END IF;
    IF NOT EXISTS (SELECT FROM pgdefect.detector d WHERE d.id = holdout_threshold.detector) THEN
        RAISE EXCEPTION 'there is no detector %', coalesce(holdout_threshold.detector::text, 'NULL')
            USING ERRCODE = 'PD404', HINT = 'SELECT detector_id FROM defect.thresholds lists them.';
    END IF;
    SELECT array_agg(h.image_id), array_agg(h.raw_score) INTO image_ids, scores
    FROM pgdefect.holdout_scores(holdout_threshold.detector) h
    WHERE with_left_out OR NOT h.left_out;
    IF scores IS NULL THEN
        RAISE EXCEPTION 'detector % has no scores of held-out normal images', holdout_threshold.detector
            USING ERRCODE = 'PD404', HINT = 'Train the category again: training stores them.';
    END IF;
    RETURN QUERY
    SELECT t.threshold, t.score_center, t.rule
    FROM pgdefect.threshold_by_parts(image_ids, scores, false_reject_rate) t;
END
$$;

COMMENT ON FUNCTION pgdefect.holdout_threshold IS
'The threshold that rejects at most a share of normal parts, from a detector''s held-out normal images, with or without those that are left out. Used by defect.threshold_for.';
