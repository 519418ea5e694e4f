-- Apply a detector's present threshold to the scores it has given; no network runs.
--
-- Each image whose newest inspection by this detector was under another threshold gets a
-- re-judgement under the present one, an event of today; the old ones stay as they are. It has
-- inspected_at from the look at the image that it rests on, so that it stands for that look, and
-- never for a later one of another detector. What the defect probably is goes along where there
-- still is one, by the new verdict or by what is known. Images with simulated defects are judged
-- again, too, but only photographs are counted: returns how many of them were.
--
-- bank is the old name of detector.
CREATE OR REPLACE FUNCTION defect.rejudge(
    detector bigint DEFAULT NULL, bank bigint DEFAULT NULL
) RETURNS bigint
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog
AS $$
DECLARE
    judge bigint := pgdefect.renamed_argument('rejudge', 'detector', rejudge.detector, 'bank', bank);
    target pgdefect.detector;
    made bigint;
BEGIN
    SELECT d.* INTO target FROM pgdefect.detector d WHERE d.id = judge FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no detector %', coalesce(judge::text, 'NULL')
            USING ERRCODE = 'PD404', HINT = 'SELECT detector_id FROM defect.thresholds lists them.';
    END IF;
    WITH judged AS (
        INSERT INTO pgdefect.inspection AS kept
            (image_id, detector_id, raw_score, normalized_score, threshold, worst_row, worst_col,
             anomaly_map, nearest_positions, search, vote, probable_defect_type, event,
             inspected_at, created_at)
        SELECT n.image_id, n.detector_id, n.raw_score,
               pgdefect.normalized_score(n.raw_score, target.threshold, target.score_center),
               target.threshold, n.worst_row, n.worst_col, n.anomaly_map, n.nearest_positions,
               n.search, CASE WHEN n.defective THEN n.vote END,
               CASE WHEN n.defective THEN n.probable_defect_type END, 're-judgement',
               n.inspected_at, clock_timestamp()
        FROM (
            SELECT DISTINCT ON (s.image_id) s.*,
                   s.raw_score > target.threshold OR i.known_label = 'anomalous' AS defective
            FROM pgdefect.inspection s
            JOIN pgdefect.image i ON i.id = s.image_id AND i.retired_at IS NULL
            WHERE s.detector_id = judge
            ORDER BY s.image_id, s.inspected_at DESC, s.created_at DESC, s.id DESC
        ) n
        WHERE n.threshold <> target.threshold
        ORDER BY n.image_id
        RETURNING kept.image_id
    )
    SELECT count(*) INTO made
    FROM judged j JOIN pgdefect.image i ON i.id = j.image_id
    WHERE i.split <> 'simulated';
    RETURN made;
END
$$;

COMMENT ON FUNCTION defect.rejudge IS
'Judges stored scores of a detector again under its present threshold, as events of their own (re-judgement); old ones stay. Returns how many photographs were; simulated defects follow uncounted. Example: SELECT defect.rejudge(detector => 1);';
