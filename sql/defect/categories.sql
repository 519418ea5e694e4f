-- Products with their counts, reject rate and active detector (PatchCore's where one of each
-- kind is); simulated defects are not counted.
--
-- Labels are the known ones: the newest review's, else the data set's.
CREATE OR REPLACE VIEW defect.categories AS
SELECT n.*,
       n.rejected_images::double precision / nullif(n.inspected_images, 0) AS reject_rate,
       defect.rate_interval(n.rejected_images, n.inspected_images) AS reject_interval,
       pgdefect.json_number(v.metrics, 'image_auroc') AS image_auroc,
       v.created_at AS evaluated_at, r.reviewed_images
FROM (
    SELECT c.id AS category_id, c.name AS category,
           count(i.id) AS images,
           count(i.id) FILTER (WHERE i.split = 'train') AS train_images,
           count(i.id) FILTER (WHERE i.known_label = 'normal') AS normal_images,
           count(i.id) FILTER (WHERE i.known_label = 'anomalous') AS anomalous_images,
           count(s.image_id) AS inspected_images,
           count(s.image_id) FILTER (WHERE s.is_anomalous) AS rejected_images,
           d.id AS detector_id, d.version AS detector_version, d.threshold,
           c.created_at, c.retired_at
    FROM pgdefect.category c
    LEFT JOIN LATERAL (
        SELECT * FROM pgdefect.detector d WHERE d.category_id = c.id AND d.active
        ORDER BY pgdefect.kind_preference(d.kind) LIMIT 1
    ) d ON true
    LEFT JOIN pgdefect.image i
        ON i.category_id = c.id AND i.retired_at IS NULL AND i.split <> 'simulated'
    LEFT JOIN LATERAL (
        SELECT s.image_id, s.is_anomalous FROM pgdefect.inspection s
        WHERE s.image_id = i.id AND s.detector_id = d.id AND s.threshold = d.threshold
        ORDER BY s.inspected_at DESC, s.created_at DESC, s.id DESC LIMIT 1
    ) s ON true
    GROUP BY c.id, d.id, d.version, d.threshold
) n
LEFT JOIN LATERAL (
    SELECT * FROM pgdefect.evaluation v WHERE v.detector_id = n.detector_id AND v.split = 'test'
    ORDER BY v.created_at DESC, v.id DESC LIMIT 1
) v ON true
CROSS JOIN LATERAL (
    SELECT count(*) AS reviewed_images FROM pgdefect.image i
    WHERE i.category_id = n.category_id AND i.reviewed_label IS NOT NULL
      AND i.retired_at IS NULL AND i.split <> 'simulated'
) r;

COMMENT ON VIEW defect.categories IS
'Products with their image counts and active detector (PatchCore''s where one of each kind is); inspected and rejected count what the active detector judged under its present threshold; reject_rate is a share with its 95 % interval, image_auroc (0 to 1) of the newest evaluation. Example: SELECT category, images, reject_rate, image_auroc FROM defect.categories;';
