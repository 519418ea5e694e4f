-- The threshold that rejects at most a given share of the images of new normal parts, from raw
-- scores of normal images.
--
-- Parts are counted, not images: each of m parts weighs 1 / (m + 1), shared evenly by its images,
-- and the threshold is the smallest score that scores of a weight of 1 - rate do not exceed
-- (hierarchical conformal prediction, arXiv 2306.06342), and never below the median. The rule says
-- what it was made from: a prediction interval for as many new parts, and where the parts are too
-- few for the promise "guaranteed": false, with what can be promised; each then weighs 1 / m, and
-- the rate is what is expected. A part is a group of images;
-- one without a group is a part of its own, with the copies of its file.
--
-- Same rule in Python:
--   pgdefect.core.thresholds.false_reject_rate
CREATE OR REPLACE FUNCTION pgdefect.threshold_by_parts(
    image_ids bigint[], raw_scores double precision[], false_reject_rate double precision
)
RETURNS TABLE (threshold double precision, score_center double precision, rule jsonb)
LANGUAGE plpgsql
STABLE
SET search_path = pg_catalog
AS $$
#variable_conflict use_column
DECLARE
    rate double precision := threshold_by_parts.false_reject_rate;
    scores double precision[];
    below double precision[];
    count integer;
    parts integer;
    needed bigint;
    wanted double precision;
    place integer;
    accepted integer;
    center double precision;
    value double precision;
BEGIN
    IF rate IS NULL OR NOT (rate > 0 AND rate < 1) THEN
        RAISE EXCEPTION 'the false-reject rate must lie between 0 and 1, not %',
            coalesce(rate::text, 'NULL')
            USING ERRCODE = 'PD400', HINT = '0.05 rejects at most one normal image in twenty.';
    END IF;
    -- below: how many parts, in fractions, score as high or lower.
    SELECT array_agg(s.raw_score ORDER BY s.raw_score, s.image_id),
           array_agg(s.below ORDER BY s.raw_score, s.image_id),
           max(s.parts)
    INTO scores, below, parts
    FROM (
        SELECT h.image_id, h.raw_score, sum(h.weight) OVER (
                   ORDER BY h.raw_score, h.image_id ROWS UNBOUNDED PRECEDING) AS below,
               sum(h.first) OVER () AS parts
        FROM (
            SELECT h.image_id, h.raw_score,
                   1 / (count(*) OVER part)::double precision AS weight,
                   (row_number() OVER (part ORDER BY h.image_id) = 1)::integer AS first
            FROM unnest(image_ids, raw_scores) h(image_id, raw_score)
            JOIN pgdefect.image i ON i.id = h.image_id
            WINDOW part AS (PARTITION BY coalesce('g' || i.group_name, 's' || i.sha256))
        ) h
    ) s;
    count := coalesce(cardinality(scores), 0);
    needed := ceil(1 / rate - 1e-9::double precision)::bigint - 1;
    wanted := (parts + (parts >= needed)::integer) * (1 - rate) - 1e-9::double precision;
    place := coalesce(
        (SELECT min(n) FROM generate_subscripts(below, 1) n WHERE below[n] >= wanted), count);
    accepted := least(greatest(ceil((parts + 1) * (1 - rate) - 1e-9::double precision), 1), parts);
    center := (scores[(count + 1) / 2] + scores[count / 2 + 1]) / 2;
    value := greatest(scores[place],
                      center + greatest(1e-6::double precision * greatest(abs(center), 1e-9), 1e-9));
    RETURN QUERY SELECT value, center, jsonb_build_object(
        'rule', 'false_reject_rate',
        'rate', rate,
        'held_out_images', count,
        'held_out_parts', parts,
        'false_rejects', (SELECT count(*) FROM unnest(scores) s WHERE s > value),
        'false_reject_interval', to_jsonb(pgdefect.rejects_interval(parts, accepted)),
        'guaranteed', parts >= needed,
        'promised_rate', CASE WHEN parts >= needed THEN rate
                              ELSE 1 - below[place] / (parts + 1) END,
        'parts_needed', needed);
END
$$;

COMMENT ON FUNCTION pgdefect.threshold_by_parts IS
'The threshold that rejects at most a share of normal parts, from raw scores of normal images. Used by defect.threshold_for and defect.threshold_from_production.';
