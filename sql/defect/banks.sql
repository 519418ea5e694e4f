-- Every detector with its memory bank: settings, figures of its newest evaluation on test
-- images, size on disk.
CREATE OR REPLACE VIEW defect.banks AS
SELECT b.id AS bank_id, c.name AS category, d.kind, d.version, d.state, d.active,
       e.backbone, e.layers, e.embedding_dim AS extractor_dim,
       b.num_images, b.num_vectors, b.embedding_dim, b.precision, b.metric, b.transform,
       b.coreset_ratio, b.covering_radius, b.num_neighbors, b.ef_search, b.ef_search_recall,
       b.ef_search_fast,
       d.threshold, d.threshold_rule, d.metrics,
       pg_size_pretty(pg_total_relation_size(
           to_regclass('pgdefect.memory_bank_patch_' || b.id))) AS size,
       d.created_at, b.worst_share, e.preprocessing,
       pgdefect.json_number(v.metrics, 'image_auroc') AS image_auroc,
       pgdefect.json_number(v.metrics, 'image_f1_max') AS image_f1_max,
       pgdefect.json_number(v.metrics, 'pixel_auroc') AS pixel_auroc,
       pgdefect.json_number(v.metrics, 'aupro') AS aupro,
       v.created_at AS evaluated_at,
       pg_total_relation_size(to_regclass('pgdefect.memory_bank_patch_' || b.id))
           + coalesce(pg_total_relation_size(to_regclass('pgdefect.memory_bank_raw_' || b.id)), 0)
           AS size_bytes
FROM pgdefect.memory_bank b
JOIN pgdefect.detector d ON d.id = b.id
JOIN pgdefect.category c ON c.id = d.category_id
JOIN pgdefect.extractor e ON e.id = d.extractor_id
LEFT JOIN LATERAL (
    SELECT * FROM pgdefect.evaluation v WHERE v.detector_id = d.id AND v.split = 'test'
    ORDER BY v.created_at DESC, v.id DESC LIMIT 1
) v ON true;

COMMENT ON VIEW defect.banks IS
'Every trained memory bank: where it came from, its threshold and the rule that made it, the figures of its newest evaluation on test images (0 to 1), and its size on disk (size: what is searched; size_bytes: all that is kept). Example: SELECT category, num_vectors, threshold, image_auroc, size FROM defect.banks WHERE active;';
