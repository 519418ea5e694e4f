-- Images whose patch embeddings are kept (inspect --keep-patches), and what they take.
CREATE OR REPLACE VIEW defect.kept_patches AS
SELECT c.name AS category, p.image_id, r.path || '/' || i.path AS path, p.extractor_id,
       e.backbone, p.rows, p.cols, e.embedding_dim, pg_column_size(p.embeddings) AS size_bytes
FROM pgdefect.image_patches p
JOIN pgdefect.image i ON i.id = p.image_id
JOIN pgdefect.image_root r ON r.id = i.root_id
JOIN pgdefect.category c ON c.id = i.category_id
JOIN pgdefect.extractor e ON e.id = p.extractor_id;

COMMENT ON VIEW defect.kept_patches IS
'Images whose patch embeddings are kept in half precision, so that defect.inspect can judge them by any bank of the extractor; size_bytes is what one image takes on disk. Example: SELECT category, count(*), pg_size_pretty(sum(size_bytes)) FROM defect.kept_patches GROUP BY category;';
