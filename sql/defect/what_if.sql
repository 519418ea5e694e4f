-- What a threshold would do to the images of known label that a detector has inspected.
--
-- What is known is what the newest review says, else what the data set does.
-- False rejects are normal images above it, escapes anomalous images that are not. Rates are
-- NULL without images; the intervals are the exact 95 % ones. Images of one split (test),
-- without those the detector has learned from, their copies and other images of their groups.
--
-- bank is the old name of detector.
--
-- Same rule in Python:
--   pgdefect.core.thresholds.outcome
CREATE OR REPLACE FUNCTION defect.what_if(
    detector bigint DEFAULT NULL, threshold double precision DEFAULT NULL,
    split text DEFAULT 'test', bank bigint DEFAULT NULL
) RETURNS TABLE (
    normal_images bigint, false_rejects bigint, false_reject_rate double precision,
    false_reject_interval double precision[],
    anomalous_images bigint, escapes bigint, escape_rate double precision,
    escape_interval double precision[]
)
LANGUAGE plpgsql
STABLE
ROWS 1
SET search_path = pg_catalog
AS $$
#variable_conflict use_column
DECLARE
    judge bigint := pgdefect.renamed_argument('what_if', 'detector', what_if.detector, 'bank', bank);
BEGIN
    IF NOT EXISTS (SELECT FROM pgdefect.detector d WHERE d.id = judge) THEN
        RAISE EXCEPTION 'there is no detector %', coalesce(judge::text, 'NULL')
            USING ERRCODE = 'PD404', HINT = 'SELECT detector_id FROM defect.detectors lists them.';
    END IF;
    IF what_if.threshold IS NULL OR what_if.threshold = 'NaN' THEN
        RAISE EXCEPTION 'the threshold is a number, not %', coalesce(what_if.threshold::text, 'NULL')
            USING ERRCODE = 'PD400',
                  HINT = format('The present one: SELECT threshold FROM defect.detectors '
                                'WHERE detector_id = %s', judge);
    END IF;
    PERFORM pgdefect.check_split(what_if.split);
    RETURN QUERY
    SELECT n.normal, n.false_rejects, n.false_rejects::double precision / nullif(n.normal, 0),
           defect.rate_interval(n.false_rejects, n.normal),
           n.anomalous, n.escapes, n.escapes::double precision / nullif(n.anomalous, 0),
           defect.rate_interval(n.escapes, n.anomalous)
    FROM (
        SELECT count(*) FILTER (WHERE s.label = 'normal') AS normal,
               count(*) FILTER (WHERE s.label = 'normal'
                                  AND s.raw_score > what_if.threshold) AS false_rejects,
               count(*) FILTER (WHERE s.label = 'anomalous') AS anomalous,
               count(*) FILTER (WHERE s.label = 'anomalous'
                                  AND s.raw_score <= what_if.threshold) AS escapes
        FROM pgdefect.labeled_scores(judge, what_if.split) s
    ) n;
END
$$;

COMMENT ON FUNCTION defect.what_if IS
'False rejects and escapes among the labeled images a detector has inspected, were this the threshold; with rates and 95 % intervals. Example: SELECT t, w.* FROM generate_series(0.05, 0.2, 0.01) t, defect.what_if(detector => 1, threshold => t) w;';
