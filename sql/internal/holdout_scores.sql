-- Scores of the normal images that were held out in training: what thresholds are chosen from.
--
-- left_out: no threshold is chosen from it. It scored far outside the rest (an outlier) and no
-- review says that it is normal; or it is known to be anomalous since.
CREATE OR REPLACE FUNCTION pgdefect.holdout_scores(bank bigint)
RETURNS TABLE (image_id bigint, raw_score double precision, left_out boolean)
LANGUAGE sql
STABLE PARALLEL SAFE
SET search_path = pg_catalog
AS $$
    SELECT h.image_id, h.raw_score,
           (h.outlier AND i.reviewed_label IS DISTINCT FROM 'normal')
               OR i.known_label IS NOT DISTINCT FROM 'anomalous'
    FROM pgdefect.holdout_score h
    JOIN pgdefect.image i ON i.id = h.image_id
    WHERE h.detector_id = bank
$$;

COMMENT ON FUNCTION pgdefect.holdout_scores IS
'Raw scores of a detector''s held-out normal images; left_out are outliers that no review calls normal, and images known to be anomalous. Used by defect.threshold_for and pgdefect threshold.';
