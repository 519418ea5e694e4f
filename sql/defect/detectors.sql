-- Every detector of either kind, side by side: threshold, figures, size.
CREATE OR REPLACE VIEW defect.detectors AS
SELECT d.id AS detector_id, c.name AS category, d.kind, d.version, d.state, d.active,
       e.backbone, e.preprocessing->'image_size' AS image_size,
       coalesce(b.num_images, jsonb_array_length(d.settings->'training_images')) AS num_images,
       b.num_vectors,
       d.threshold, d.threshold_rule->>'rule' AS rule_name,
       pgdefect.json_number(v.metrics, 'image_auroc') AS image_auroc,
       pgdefect.json_number(v.metrics, 'image_f1_max') AS image_f1_max,
       pgdefect.json_number(v.metrics, 'pixel_auroc') AS pixel_auroc,
       pgdefect.json_number(v.metrics, 'aupro') AS aupro,
       pgdefect.json_number(v.metrics, 'detection_rate') AS detection_rate,
       pgdefect.json_number(v.metrics, 'false_reject_rate') AS false_reject_rate,
       v.created_at AS evaluated_at,
       pg_size_pretty(coalesce(
           octet_length(m.onnx),
           pg_total_relation_size(to_regclass('pgdefect.memory_bank_patch_' || b.id)))) AS size,
       e.id AS extractor_id, d.created_at
FROM pgdefect.detector d
JOIN pgdefect.category c ON c.id = d.category_id
JOIN pgdefect.extractor e ON e.id = d.extractor_id
LEFT JOIN pgdefect.memory_bank b ON b.id = d.id
LEFT JOIN pgdefect.detector_model m ON m.detector_id = d.id
LEFT JOIN LATERAL (
    SELECT * FROM pgdefect.evaluation v WHERE v.detector_id = d.id AND v.split = 'test'
    ORDER BY v.created_at DESC, v.id DESC LIMIT 1
) v ON true;

COMMENT ON VIEW defect.detectors IS
'Every detector, PatchCore (with a memory bank of num_vectors) or EfficientAD (a network), with the figures of its newest evaluation on test images. Example: SELECT category, kind, version, threshold, image_auroc, aupro, size FROM defect.detectors WHERE active ORDER BY category, kind;';
