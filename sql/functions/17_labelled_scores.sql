-- Raw scores that a detector gave to images of known label: what a threshold is judged by.
--
-- The label is the newest review's, else the data set's.
-- The newest score of each image of one split, whatever threshold it was judged under. Left
-- out are retired images and those the detector has learned from: normal training images
-- that were not held out or are in its bank, copies of their files, and every image of their
-- groups; and defects simulated on images that did not set the threshold.
CREATE OR REPLACE FUNCTION pgdefect.labelled_scores(bank bigint, split text DEFAULT 'test')
RETURNS TABLE (image_id bigint, label text, raw_score double precision)
LANGUAGE sql
STABLE
SET search_path = pg_catalog
AS $$
    WITH learned AS MATERIALIZED (
        SELECT t.id, t.group_name, t.sha256, h.image_id IS NOT NULL AS held_out
        FROM pgdefect.detector d
        JOIN pgdefect.image t
            ON t.category_id = d.category_id AND t.split = 'train'
            AND 'normal' IN (t.label, t.known_label)
        LEFT JOIN pgdefect.holdout_score h ON h.detector_id = bank AND h.image_id = t.id
        WHERE d.id = bank
          AND (h.image_id IS NULL OR t.id IN (
              SELECT p.image_id FROM pgdefect.memory_bank_patch p WHERE p.bank_id = bank))
    )
    SELECT DISTINCT ON (i.id) i.id, i.known_label, s.raw_score
    FROM pgdefect.inspection s
    JOIN pgdefect.image i ON i.id = s.image_id
    WHERE s.detector_id = bank
      AND i.split = labelled_scores.split
      AND i.known_label IS NOT NULL
      AND i.retired_at IS NULL
      AND NOT EXISTS (SELECT FROM learned l WHERE l.id = i.id)
      AND NOT EXISTS (SELECT FROM learned l WHERE l.group_name = i.group_name)
      AND NOT EXISTS (SELECT FROM learned l WHERE l.sha256 = i.sha256)
      AND NOT EXISTS (SELECT FROM learned l WHERE NOT l.held_out
                      AND l.id = (i.simulation->>'source_image_id')::bigint)
    ORDER BY i.id, s.created_at DESC, s.id DESC
$$;

COMMENT ON FUNCTION pgdefect.labelled_scores IS
'Raw scores a detector gave to the images of one split whose label is known (by review, else by the data set), and that it has not learned from. Used by defect.what_if and pgdefect threshold.';
