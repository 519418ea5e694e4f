-- How well a detector's scores tell anomalous images from normal ones: the area under the ROC
-- curve, which is the chance that an anomalous image scores higher than a normal one, ties
-- counting half (Mann and Whitney).
--
-- detector     its id
-- split        whose images of known label (by review, else by the data set) are looked at
-- drop_leaks   leave out images that the detector has learned from or that set its threshold,
--              and their parts and copies
-- bank         the old name of detector
--
-- The newest score of each image counts, whatever threshold it was judged under. The pairs
-- are counted in whole numbers: the figure is pgdefect evaluate's, of the same images. NULL
-- without an image of either label.
--
-- Same rule in Python:
--   pgdefect.evaluation.figures.image_auroc
CREATE OR REPLACE FUNCTION defect.image_auroc(
    detector bigint DEFAULT NULL, split text DEFAULT 'test', drop_leaks boolean DEFAULT false,
    bank bigint DEFAULT NULL
) RETURNS double precision
LANGUAGE plpgsql
STABLE PARALLEL SAFE
SET search_path = pg_catalog
AS $$
DECLARE
    judge bigint := pgdefect.renamed_argument(
        'image_auroc', 'detector', image_auroc.detector, 'bank', bank);
    figure double precision;
BEGIN
    IF NOT EXISTS (SELECT FROM pgdefect.detector d WHERE d.id = judge) THEN
        RAISE EXCEPTION 'there is no detector %', coalesce(judge::text, 'NULL')
            USING ERRCODE = 'PD404', HINT = 'SELECT detector_id FROM defect.detectors lists them.';
    END IF;
    PERFORM pgdefect.check_split(image_auroc.split);
    WITH held_out AS MATERIALIZED (
        SELECT t.group_name, t.sha256
        FROM pgdefect.holdout_score h JOIN pgdefect.image t ON t.id = h.image_id
        WHERE drop_leaks AND h.detector_id = judge
    ), scored AS (
        SELECT l.label, l.raw_score
        FROM pgdefect.labeled_scores(judge, image_auroc.split) l
        JOIN pgdefect.image i ON i.id = l.image_id
        WHERE drop_leaks
          AND NOT EXISTS (SELECT FROM held_out h WHERE h.group_name = i.group_name)
          AND NOT EXISTS (SELECT FROM held_out h WHERE h.sha256 = i.sha256)
        UNION ALL
        SELECT * FROM (
            SELECT DISTINCT ON (i.id) i.known_label, s.raw_score
            FROM pgdefect.inspection s
            JOIN pgdefect.image i ON i.id = s.image_id
            WHERE NOT drop_leaks AND s.detector_id = judge AND i.split = image_auroc.split
              AND i.known_label IS NOT NULL AND i.retired_at IS NULL
            ORDER BY i.id, s.inspected_at DESC, s.created_at DESC, s.id DESC
        ) every
    ), tied AS (
        SELECT raw_score, count(*) FILTER (WHERE label = 'normal') AS normal,
               count(*) FILTER (WHERE label = 'anomalous') AS anomalous
        FROM scored GROUP BY raw_score
    ), pairs AS (
        -- Twice the pairs won: every normal score below counts two, an equal one counts one.
        SELECT normal, anomalous,
               anomalous * (2 * (sum(normal) OVER (ORDER BY raw_score) - normal) + normal) AS won
        FROM tied
    )
    SELECT (sum(won) / 2)::double precision / nullif((sum(normal) * sum(anomalous))::double precision, 0)
    INTO figure FROM pairs;
    RETURN figure;
END
$$;

COMMENT ON FUNCTION defect.image_auroc IS
'Image AUROC of a detector, 0 to 1 (0.5 is chance), over the inspected images of known label in one split; equal to pgdefect evaluate''s, with drop_leaks to that without leaks. NULL without normal or anomalous images. Example: SELECT detector_id, kind, version, defect.image_auroc(detector_id) FROM defect.detectors;';
