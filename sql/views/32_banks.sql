-- Every detector with its memory bank: settings, figures, size on disk.
CREATE OR REPLACE VIEW defect.banks AS
SELECT b.id AS bank_id, c.name AS category, d.kind, d.version, d.state, d.active,
       e.backbone, e.layers, e.embedding_dim AS extractor_dim,
       b.num_images, b.num_vectors, b.embedding_dim, b.precision, b.metric, b.transform,
       b.coreset_ratio, b.covering_radius, b.num_neighbors, b.ef_search, b.ef_search_recall,
       b.ef_search_fast,
       d.threshold, d.threshold_rule, d.metrics,
       pg_size_pretty(pg_total_relation_size(
           to_regclass('pgdefect.memory_bank_patch_' || b.id))) AS size,
       d.created_at, b.worst_share, e.preprocessing
FROM pgdefect.memory_bank b
JOIN pgdefect.detector d ON d.id = b.id
JOIN pgdefect.category c ON c.id = d.category_id
JOIN pgdefect.extractor e ON e.id = d.extractor_id;

COMMENT ON VIEW defect.banks IS
'Every trained memory bank: where it came from, its threshold and the rule that made it, its figures and size on disk. Example: SELECT category, num_vectors, threshold, size FROM defect.banks WHERE active;';
