-- Products with their counts and active detector (PatchCore's where one of each kind is);
-- simulated defects are not counted.
CREATE OR REPLACE VIEW defect.categories AS
SELECT c.id AS category_id, c.name AS category,
       count(i.id) AS images,
       count(i.id) FILTER (WHERE i.split = 'train') AS train_images,
       count(i.id) FILTER (WHERE i.label = 'normal') AS normal_images,
       count(i.id) FILTER (WHERE i.label = 'anomalous') AS anomalous_images,
       count(s.image_id) AS inspected_images,
       count(s.image_id) FILTER (WHERE s.is_anomalous) AS rejected_images,
       d.id AS detector_id, d.version AS detector_version, d.threshold,
       c.created_at, c.retired_at
FROM pgdefect.category c
LEFT JOIN LATERAL (
    SELECT * FROM pgdefect.detector d WHERE d.category_id = c.id AND d.active
    ORDER BY d.kind <> 'patchcore' LIMIT 1
) d ON true
LEFT JOIN pgdefect.image i
    ON i.category_id = c.id AND i.retired_at IS NULL AND i.split <> 'simulated'
LEFT JOIN pgdefect.inspection s
    ON s.image_id = i.id AND s.detector_id = d.id AND s.threshold = d.threshold
GROUP BY c.id, d.id, d.version, d.threshold;

COMMENT ON VIEW defect.categories IS
'Products with their image counts and active detector (PatchCore''s where one of each kind is); inspected and rejected count what the active detector judged under its present threshold. Example: SELECT * FROM defect.categories;';
