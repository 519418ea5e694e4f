-- Every evaluation of every detector: its main figures, and all of them as JSON.
CREATE OR REPLACE VIEW defect.evaluations AS
SELECT v.id AS evaluation_id, c.name AS category, v.detector_id, d.kind, d.version, d.active,
       v.split, v.normal_images, v.anomalous_images,
       (v.metrics->>'image_auroc')::double precision AS image_auroc,
       (v.metrics->>'image_f1_max')::double precision AS image_f1_max,
       (v.metrics->>'average_precision')::double precision AS average_precision,
       (v.metrics->>'pixel_auroc')::double precision AS pixel_auroc,
       (v.metrics->>'pixel_f1_max')::double precision AS pixel_f1_max,
       (v.metrics->>'aupro')::double precision AS aupro,
       (v.metrics->>'detection_rate')::double precision AS detection_rate,
       (v.metrics->>'false_reject_rate')::double precision AS false_reject_rate,
       coalesce(jsonb_array_length(v.settings->'leaks'), 0) AS leaks,
       v.threshold, v.metrics, v.settings, v.created_at
FROM pgdefect.evaluation v
JOIN pgdefect.detector d ON d.id = v.detector_id
JOIN pgdefect.category c ON c.id = d.category_id;

COMMENT ON VIEW defect.evaluations IS
'What detectors were worth on labeled images: figures between 0 and 1, intervals and defect types in metrics, how they were measured in settings; leaks counts parts that the detector had also learned from. Example: SELECT category, version, image_auroc, aupro, metrics->''intervals''->''image_auroc'' AS interval FROM defect.evaluations ORDER BY created_at DESC;';
