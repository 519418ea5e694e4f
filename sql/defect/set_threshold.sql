-- Put a threshold in force, without training again.
--
-- category     whose active detector gets it
-- threshold    raw score above which an image is anomalous; a number above 0
-- rule         how it was chosen, a JSON object; kept in the history
-- detector     this one instead of the active one (PatchCore's where one of each kind is active)
--
-- Inspections keep the threshold they were judged by; defect.rejudge applies the new one to
-- their scores. Of two sessions the later one waits and wins, and both are in the history.
CREATE OR REPLACE FUNCTION defect.set_threshold(
    category text,
    threshold double precision,
    rule jsonb DEFAULT '{"rule": "given"}',
    detector bigint DEFAULT NULL
) RETURNS TABLE (
    threshold_id bigint, detector_id bigint, threshold_before double precision,
    threshold_now double precision, score_center double precision, since timestamptz
)
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog
AS $$
#variable_conflict use_column
DECLARE
    found bigint;
    target pgdefect.detector;
    center double precision;
BEGIN
    -- NaN is greater than every number.
    IF (set_threshold.threshold > 0 AND set_threshold.threshold < 'Infinity') IS NOT TRUE THEN
        RAISE EXCEPTION 'a threshold is a finite number above 0, not %',
            coalesce(set_threshold.threshold::text, 'NULL')
            USING ERRCODE = 'PD400', HINT = 'Name the raw score above which an image is anomalous.';
    END IF;
    IF jsonb_typeof(set_threshold.rule) IS DISTINCT FROM 'object' THEN
        RAISE EXCEPTION 'the rule of a threshold is a JSON object, not %',
            coalesce(set_threshold.rule::text, 'NULL')
            USING ERRCODE = 'PD400', HINT = 'For example {"rule": "given", "why": "agreed with the customer"}.';
    END IF;
    found := pgdefect.find_detector(set_threshold.category, set_threshold.detector);
    SELECT d.* INTO STRICT target FROM pgdefect.detector d WHERE d.id = found FOR NO KEY UPDATE;
    center := pgdefect.score_center(target.id, set_threshold.threshold);
    RETURN QUERY
        WITH changed AS (
            UPDATE pgdefect.detector d
            SET threshold = set_threshold.threshold,
                threshold_rule = set_threshold.rule,
                score_center = center
            WHERE d.id = target.id
            RETURNING d.id
        )
        INSERT INTO pgdefect.detector_threshold AS t
            (detector_id, threshold, score_center, rule, created_at)
        SELECT c.id, set_threshold.threshold, center, set_threshold.rule, clock_timestamp()
        FROM changed c
        RETURNING t.id, t.detector_id, target.threshold, t.threshold, t.score_center, t.created_at;
END
$$;

COMMENT ON FUNCTION defect.set_threshold IS
'Changes the threshold of a category''s active detector and keeps the old one, with its rule, in defect.thresholds. Inspections keep theirs until defect.rejudge. Example: SELECT * FROM defect.set_threshold(''leather'', 0.12);';
