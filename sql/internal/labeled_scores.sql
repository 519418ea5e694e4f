-- Raw scores that a detector gave to images of known label: what a threshold is judged by.
--
-- The label is the newest review's, else the data set's.
-- The newest score of each image of one split, whatever threshold it was judged under. Left
-- out are retired images and those the detector has learned from (pgdefect.images_learned),
-- copies of their files, and every image of their groups. A simulated defect is judged by what
-- it was drawn on instead: left out if that was learned from and did not set the threshold.
CREATE OR REPLACE FUNCTION pgdefect.labeled_scores(detector bigint, split text DEFAULT 'test')
RETURNS TABLE (image_id bigint, label text, raw_score double precision)
LANGUAGE sql
STABLE PARALLEL SAFE
SET search_path = pg_catalog
AS $$
    WITH learned AS MATERIALIZED (
        SELECT t.id, t.group_name, t.sha256, h.image_id IS NOT NULL AS held_out
        FROM pgdefect.images_learned(labeled_scores.detector) l
        JOIN pgdefect.image t ON t.id = l.image_id
        LEFT JOIN pgdefect.holdout_score h ON h.detector_id = labeled_scores.detector AND h.image_id = t.id
        WHERE l.learned
    )
    SELECT DISTINCT ON (i.id) i.id, i.known_label, s.raw_score
    FROM pgdefect.inspection s
    JOIN pgdefect.image i ON i.id = s.image_id
    WHERE s.detector_id = labeled_scores.detector
      AND i.split = labeled_scores.split
      AND i.known_label IS NOT NULL
      AND i.retired_at IS NULL
      -- Each a test of its own, which the planner can hash.
      AND NOT EXISTS (SELECT FROM learned l
                      WHERE i.simulation IS NULL AND l.group_name = i.group_name)
      AND NOT EXISTS (SELECT FROM learned l WHERE i.simulation IS NULL AND l.sha256 = i.sha256)
      AND NOT EXISTS (SELECT FROM learned l WHERE NOT l.held_out
                      AND l.id = pgdefect.json_integer(i.simulation, 'source_image_id'))
    ORDER BY i.id, s.inspected_at DESC, s.created_at DESC, s.id DESC
$$;

COMMENT ON FUNCTION pgdefect.labeled_scores IS
'Raw scores a detector gave to the images of one split whose label is known (by review, else by the data set), and that it has not learned from. Used by defect.what_if and pgdefect threshold.';
