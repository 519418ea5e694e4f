-- Every vector of every memory bank: the normal image and the grid cell it came from.
--
-- Name the bank: each is a table of its own, and only that is read. image_id, path, row and col
-- are NULL where an imported bank does not say where its vectors came from. Neighbors of one
-- vector: defect.similar_patches.
CREATE OR REPLACE VIEW defect.bank_vectors AS
SELECT p.bank_id, c.name AS category, d.version, p.position, i.id AS image_id,
       r.path || '/' || i.path AS path,
       CASE WHEN p.image_id <> 0 THEN p.row END AS "row",
       CASE WHEN p.image_id <> 0 THEN p.col END AS col, p.embedding
FROM pgdefect.memory_bank_patch p
JOIN pgdefect.detector d ON d.id = p.bank_id
JOIN pgdefect.category c ON c.id = d.category_id
LEFT JOIN pgdefect.image i ON i.id = p.image_id
LEFT JOIN pgdefect.image_root r ON r.id = i.root_id;

COMMENT ON VIEW defect.bank_vectors IS
'The vectors of every memory bank with the normal image and grid cell each came from; embedding is in the bank''s space. Example: SELECT path, count(*) FROM defect.bank_vectors WHERE bank_id = 1 GROUP BY path ORDER BY 2 DESC LIMIT 10;';
