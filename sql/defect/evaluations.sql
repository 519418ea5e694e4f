-- Every evaluation of every detector: its main figures, and all of them as JSON.
CREATE OR REPLACE VIEW defect.evaluations AS
SELECT v.id AS evaluation_id, c.name AS category, v.detector_id, d.kind, d.version, d.active,
       v.split, v.normal_images, v.anomalous_images,
       pgdefect.json_number(v.metrics, 'image_auroc') AS image_auroc,
       pgdefect.json_number(v.metrics, 'image_f1_max') AS image_f1_max,
       pgdefect.json_number(v.metrics, 'average_precision') AS average_precision,
       pgdefect.json_number(v.metrics, 'pixel_auroc') AS pixel_auroc,
       pgdefect.json_number(v.metrics, 'pixel_f1_max') AS pixel_f1_max,
       pgdefect.json_number(v.metrics, 'aupro') AS aupro,
       pgdefect.json_number(v.metrics, 'detection_rate') AS detection_rate,
       pgdefect.json_number(v.metrics, 'false_reject_rate') AS false_reject_rate,
       CASE jsonb_typeof(v.settings->'leaks') WHEN 'array' THEN jsonb_array_length(v.settings->'leaks') ELSE 0 END AS leaks,
       v.threshold, v.metrics, v.settings, v.created_at
FROM pgdefect.evaluation v
JOIN pgdefect.detector d ON d.id = v.detector_id
JOIN pgdefect.category c ON c.id = d.category_id;

COMMENT ON VIEW defect.evaluations IS
'What detectors were worth on labeled images: figures between 0 and 1, intervals and defect types in metrics, how they were measured in settings; leaks counts parts that the detector had also learned from. Example: SELECT category, version, image_auroc, aupro, metrics->''intervals''->''image_auroc'' AS interval FROM defect.evaluations ORDER BY created_at DESC;';
