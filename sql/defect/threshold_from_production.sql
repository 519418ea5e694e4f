-- The threshold that rejects at most a given share of normal parts, made again from production
-- images that the detector has inspected; changes nothing. defect.what_if previews it.
--
-- From images that reviews call normal. anomalous_share presumes that images nobody has judged are
-- normal, too, but for this share, and leaves out the share with the highest scores: if fewer are
-- anomalous, normal images may be rejected more often, by that share at most.
CREATE OR REPLACE FUNCTION defect.threshold_from_production(
    detector bigint, false_reject_rate double precision,
    anomalous_share double precision DEFAULT NULL
)
RETURNS TABLE (threshold double precision, score_center double precision, rule jsonb)
LANGUAGE plpgsql
STABLE
SET search_path = pg_catalog
AS $$
#variable_conflict use_column
DECLARE
    judge bigint := threshold_from_production.detector;
    share double precision := threshold_from_production.anomalous_share;
    image_ids bigint[];
    scores double precision[];
BEGIN
    IF false_reject_rate IS NULL OR NOT (false_reject_rate >= 1e-9 AND false_reject_rate < 1) THEN
        RAISE EXCEPTION 'the false-reject rate must lie between 0 and 1, not %',
            coalesce(false_reject_rate::text, 'NULL')
            USING ERRCODE = 'PD400', HINT = '0.05 rejects at most one normal image in twenty.';
    END IF;
    IF share IS NOT NULL AND NOT (share >= 0 AND share < 1) THEN
        RAISE EXCEPTION 'the anomalous share must lie between 0 and 1, not %', share
            USING ERRCODE = 'PD400', HINT = '0.02 presumes that two images in a hundred are anomalous.';
    END IF;
    IF NOT EXISTS (SELECT FROM pgdefect.detector d WHERE d.id = judge) THEN
        RAISE EXCEPTION 'there is no detector %', coalesce(judge::text, 'NULL')
            USING ERRCODE = 'PD404', HINT = 'SELECT detector_id FROM defect.detectors lists them.';
    END IF;
    SELECT array_agg(p.image_id), array_agg(p.raw_score) INTO image_ids, scores
    FROM pgdefect.production_scores(judge, share) p;
    IF scores IS NULL THEN
        RAISE EXCEPTION 'detector % has inspected no production image that is known to be normal', judge
            USING ERRCODE = 'PD404',
                  HINT = 'Review some (defect.review), or presume it with anomalous_share => 0.02.';
    END IF;
    RETURN QUERY
    SELECT t.threshold, t.score_center,
           t.rule || jsonb_build_object('images', 'production', 'anomalous_share', share)
    FROM pgdefect.threshold_by_parts(image_ids, scores, false_reject_rate) t;
END
$$;

COMMENT ON FUNCTION defect.threshold_from_production IS
'The threshold that rejects at most a share of normal parts, from inspected production images that are reviewed as normal, or presumed normal but for a share. Example: SELECT t.threshold, w.* FROM defect.threshold_from_production(1, false_reject_rate => 0.05, anomalous_share => 0.02) t, defect.what_if(1, t.threshold) w;';
