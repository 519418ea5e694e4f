-- Every image with what the newest inspection said of it; simulated defects are in
-- defect.simulated.
CREATE OR REPLACE VIEW defect.images AS
SELECT i.id AS image_id, c.name AS category, i.split, i.label, i.defect_type,
       CASE WHEN s.is_anomalous THEN 'anomalous' WHEN NOT s.is_anomalous THEN 'normal' END AS verdict,
       s.raw_score, s.normalized_score, s.threshold,
       s.id AS inspection_id, s.detector_id, s.created_at AS inspected_at,
       r.path || '/' || i.path AS path, i.group_name, i.height, i.width, i.sha256,
       i.attributes, i.created_at, i.retired_at
FROM pgdefect.image i
JOIN pgdefect.category c ON c.id = i.category_id
JOIN pgdefect.image_root r ON r.id = i.root_id
LEFT JOIN LATERAL (
    SELECT * FROM pgdefect.inspection s WHERE s.image_id = i.id
    ORDER BY s.created_at DESC, s.id DESC LIMIT 1
) s ON true
WHERE i.split <> 'simulated';

COMMENT ON VIEW defect.images IS
'Every image with its newest verdict. label is what is known, verdict what the detector said; scores are distances (raw) and 0 to 1 with 0.5 at the threshold (normalized). Example: SELECT path, normalized_score FROM defect.images WHERE verdict = ''anomalous'' ORDER BY normalized_score DESC LIMIT 10;';
