-- The threshold that rejects at most a given share of normal images, from the scores of the
-- normal images held out in training; needs no defect and changes nothing.
--
-- The ⌈(n + 1)(1 - rate)⌉-th smallest of n scores, and never below their median: a new normal
-- image exceeds it with probability at most the rate. The rule says what it was made from: the
-- middle 95 % of what the true rate may be, and "guaranteed": false where the images are too
-- few for the promise.
--
-- Same rule in Python:
--   pgdefect.core.thresholds.false_reject_rate
CREATE OR REPLACE FUNCTION defect.threshold_for(bank bigint, false_reject_rate double precision)
RETURNS TABLE (threshold double precision, score_center double precision, rule jsonb)
LANGUAGE plpgsql
STABLE
SET search_path = pg_catalog
AS $$
#variable_conflict use_column
DECLARE
    rate double precision := threshold_for.false_reject_rate;
    scores double precision[] := ARRAY(
        SELECT h.raw_score FROM pgdefect.holdout_score h
        WHERE h.detector_id = bank ORDER BY h.raw_score);
    count integer := cardinality(scores);
    wanted double precision := ceil((count + 1) * (1 - rate) - 1e-9::double precision);
    place integer;
    center double precision := (scores[(count + 1) / 2] + scores[count / 2 + 1]) / 2;
    value double precision;
BEGIN
    IF rate IS NULL OR NOT (rate > 0 AND rate < 1) THEN
        RAISE EXCEPTION 'the false-reject rate must lie between 0 and 1, not %',
            coalesce(rate::text, 'NULL')
            USING ERRCODE = 'PD400', HINT = '0.05 rejects at most one normal image in twenty.';
    END IF;
    IF NOT EXISTS (SELECT FROM pgdefect.detector d WHERE d.id = bank) THEN
        RAISE EXCEPTION 'there is no detector %', bank
            USING ERRCODE = 'PD404', HINT = 'SELECT detector_id FROM defect.thresholds lists them.';
    END IF;
    IF count = 0 THEN
        RAISE EXCEPTION 'detector % has no scores of held-out normal images', bank
            USING ERRCODE = 'PD404', HINT = 'Train the category again: training stores them.';
    END IF;
    place := least(greatest(wanted, 1), count);
    value := greatest(scores[place],
                      center + greatest(1e-6::double precision * greatest(abs(center), 1e-9), 1e-9));
    RETURN QUERY SELECT value, center, jsonb_build_object(
        'rule', 'false_reject_rate',
        'rate', rate,
        'held_out_images', count,
        'false_rejects', (SELECT count(*) FROM unnest(scores) s WHERE s > value),
        'false_reject_interval', jsonb_build_array(
            pgdefect.beta_quantile((1 - 0.95::double precision) / 2, count + 1 - place, place),
            pgdefect.beta_quantile((1 + 0.95::double precision) / 2, count + 1 - place, place)),
        'guaranteed', wanted <= count,
        'images_needed', ceil(1 / rate - 1e-9::double precision)::bigint - 1);
END
$$;

COMMENT ON FUNCTION defect.threshold_for IS
'The threshold that rejects at most a share of normal images, from the detector''s held-out normal images, with its uncertainty in the rule. Example: SELECT s.* FROM defect.threshold_for(bank => 1, false_reject_rate => 0.02) t, defect.set_threshold(''leather'', t.threshold, t.rule, 1) s;';
