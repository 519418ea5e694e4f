-- The raw score of normalized score 0.25 for a detector under a threshold.
--
-- It is the median of the held-out normal scores that are no outliers (of a detector that has
-- none stored, the center it was trained with) where that lies below the threshold, else half the
-- threshold. It depends on the two arguments alone, so that one threshold always means one scale.
-- (Products are of 1e-9 and more: a smaller one that underflows is an error to the server.)
--
-- Same rule in Python:
--   pgdefect.core.thresholds.center_below
CREATE OR REPLACE FUNCTION pgdefect.score_center(bank bigint, threshold double precision)
RETURNS double precision
LANGUAGE sql
STABLE
SET search_path = pg_catalog
AS $$
    SELECT CASE WHEN threshold >= m.median
                     + greatest(1e-6::double precision * greatest(abs(m.median), 1e-9), 1e-9)
                THEN m.median
                ELSE threshold
                     - greatest(0.5::double precision * greatest(abs(threshold), 1e-9), 1e-9) END
    FROM (
        SELECT coalesce(
            (SELECT (a.scores[(cardinality(a.scores) + 1) / 2]
                     + a.scores[cardinality(a.scores) / 2 + 1]) / 2
             FROM (SELECT array_agg(raw_score ORDER BY raw_score) AS scores
                   FROM pgdefect.holdout_score
                   WHERE detector_id = bank AND NOT outlier) a),
            (SELECT t.score_center FROM pgdefect.detector_threshold t
             WHERE t.detector_id = bank ORDER BY t.id LIMIT 1),
            (SELECT d.score_center FROM pgdefect.detector d WHERE d.id = bank)
        ) AS median
    ) m
$$;

COMMENT ON FUNCTION pgdefect.score_center IS
'Where the normalized score of a detector is 0.25 under a threshold: the median of its held-out normal scores if that lies below. Used by defect.set_threshold.';
