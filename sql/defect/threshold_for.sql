-- The threshold that rejects at most a given share of the images of new normal parts, from the
-- scores of the normal images held out in training; needs no defect and changes nothing.
--
-- Parts are counted, not images: each of m parts weighs 1 / (m + 1), shared evenly by its images,
-- and the threshold is the smallest score that scores of a weight of 1 - rate do not exceed
-- (hierarchical conformal prediction, arXiv 2306.06342), and never below the median. The rule says
-- what it was made from: a prediction interval for as many new parts, and where the parts are too
-- few for the promise "guaranteed": false, with what can be promised; each then weighs 1 / m, and
-- the rate is what is expected. A part is a group of images;
-- one without a group is a part of its own, with the copies of its file.
--
-- Outliers, and images known to be anomalous since, are left out (pgdefect.holdout_scores); the
-- rule names them, and says what the threshold would be with them.
--
-- bank is the old name of detector.
--
-- Same rule in Python:
--   pgdefect.core.outliers.threshold_without
CREATE OR REPLACE FUNCTION defect.threshold_for(
    detector bigint DEFAULT NULL, false_reject_rate double precision DEFAULT NULL,
    bank bigint DEFAULT NULL
)
RETURNS TABLE (threshold double precision, score_center double precision, rule jsonb)
LANGUAGE plpgsql
STABLE
SET search_path = pg_catalog
AS $$
#variable_conflict use_column
DECLARE
    judge bigint := pgdefect.renamed_argument(
        'threshold_for', 'detector', threshold_for.detector, 'bank', bank);
    rate double precision := threshold_for.false_reject_rate;
    left_out bigint[] := ARRAY(SELECT h.image_id FROM pgdefect.holdout_scores(judge) h
                               WHERE h.left_out ORDER BY h.image_id);
BEGIN
    RETURN QUERY
    SELECT t.threshold, t.score_center,
           t.rule || CASE WHEN left_out = '{}' THEN '{}' ELSE jsonb_build_object(
               'outliers', to_jsonb(left_out),
               'threshold_with_outliers', (
                   SELECT w.threshold FROM pgdefect.holdout_threshold(judge, rate, true) w)) END
    FROM pgdefect.holdout_threshold(judge, rate) t;
END
$$;

COMMENT ON FUNCTION defect.threshold_for IS
'The threshold that rejects at most a share of the images of new normal parts, from the detector''s held-out normal images, with its uncertainty in the rule. Example: SELECT s.* FROM defect.threshold_for(detector => 1, false_reject_rate => 0.02) t, defect.set_threshold(''leather'', t.threshold, t.rule, 1) s;';
