-- Every image with the verdict in force, and the newest review; simulated defects are in
-- defect.simulated.
--
-- The verdict in force is that of the newest look at the image, by whatever detector, under the
-- threshold last applied to it (defect.rejudge); defect.inspections has all there were.
-- label and defect_type are the data set's word; known_label and known_defect_type the newest
-- review's, else the data set's. The verdict is the detector's and no review changes it.
CREATE OR REPLACE VIEW defect.images AS
SELECT i.id AS image_id, c.name AS category, i.split, i.label, i.defect_type,
       CASE WHEN s.is_anomalous THEN 'anomalous' WHEN NOT s.is_anomalous THEN 'normal' END AS verdict,
       s.raw_score, s.normalized_score, s.threshold,
       s.id AS inspection_id, s.detector_id, s.inspected_at,
       r.path || '/' || i.path AS path, i.group_name, i.height, i.width, i.sha256,
       i.attributes, i.created_at, i.retired_at,
       i.reviewed_label, i.reviewed_defect_type, v.reviewer, v.note, v.created_at AS reviewed_at,
       i.known_label, i.known_defect_type, s.vote, s.probable_defect_type,
       i.taken_at, s.created_at AS judged_at, s.event, s.station, s.search,
       r.path || '/' || i.mask_path AS mask_path,
       i.group_name AS part
FROM pgdefect.image i
JOIN pgdefect.category c ON c.id = i.category_id
JOIN pgdefect.image_root r ON r.id = i.root_id
LEFT JOIN LATERAL (
    SELECT * FROM pgdefect.inspection s WHERE s.image_id = i.id
    ORDER BY s.inspected_at DESC, s.created_at DESC, s.id DESC LIMIT 1
) s ON true
LEFT JOIN LATERAL (
    SELECT * FROM pgdefect.review v WHERE v.image_id = i.id
      AND NOT EXISTS (SELECT FROM pgdefect.review_withdrawal w WHERE w.review_id = v.id)
    ORDER BY v.created_at DESC, v.id DESC LIMIT 1
) v ON i.reviewed_label IS NOT NULL
WHERE i.split <> 'simulated';

COMMENT ON VIEW defect.images IS
'Every image with the verdict in force and its newest review. label is the data set''s word, known_label the review''s where there is one, verdict what the detector said; scores are distances (raw) and 0 to 1 with 0.5 at the threshold (normalized). Example: SELECT path, normalized_score FROM defect.images WHERE verdict = ''anomalous'' ORDER BY normalized_score DESC LIMIT 10;';
