-- What a threshold would let through of each type of defect.
--
-- detector   whose scores are looked at
-- threshold  raw score above which an image is anomalous
-- split      images of this split; without those the detector has learned from, as in
--            defect.what_if
--
-- A row for each known defect type, and one of NULL for anomalous images of no known type. An
-- escape is an anomalous image that is not above the threshold. Intervals are the exact 95 % ones.
CREATE OR REPLACE FUNCTION defect.what_if_by_type(
    detector bigint, threshold double precision, split text DEFAULT 'test'
) RETURNS TABLE (
    known_defect_type text, images bigint, escapes bigint, escape_rate double precision,
    escape_interval double precision[], lowest_score double precision
)
LANGUAGE plpgsql
STABLE
ROWS 10
SET search_path = pg_catalog
AS $$
#variable_conflict use_column
BEGIN
    -- Refuses what it refuses, in the same words.
    PERFORM defect.what_if(what_if_by_type.detector, what_if_by_type.threshold, what_if_by_type.split);
    RETURN QUERY
    SELECT n.type, n.images, n.escapes, n.escapes::double precision / n.images,
           defect.rate_interval(n.escapes, n.images), n.lowest
    FROM (
        SELECT i.known_defect_type AS type, count(*) AS images,
               count(*) FILTER (WHERE s.raw_score <= what_if_by_type.threshold) AS escapes,
               min(s.raw_score) AS lowest
        FROM pgdefect.labeled_scores(what_if_by_type.detector, what_if_by_type.split) s
        JOIN pgdefect.image i ON i.id = s.image_id
        WHERE s.label = 'anomalous'
        GROUP BY 1
    ) n
    ORDER BY n.escapes::double precision / n.images DESC, n.type;
END
$$;

COMMENT ON FUNCTION defect.what_if_by_type IS
'Escapes of each known defect type, were this the threshold of a detector, with rates, exact 95 % intervals and the lowest score of each type. Example: SELECT w.* FROM defect.detectors d, defect.what_if_by_type(d.detector_id, d.threshold) w WHERE d.active;';
