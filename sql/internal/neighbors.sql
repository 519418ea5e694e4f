-- What pgdefect.nearest found, with what people call it: rows of defect.similar_images and
-- defect.similar_regions. Arguments are those of pgdefect.nearest.
CREATE OR REPLACE FUNCTION pgdefect.neighbors(
    searched text,
    extractor bigint,
    query :"vector_schema".vector,
    k integer,
    filter jsonb,
    fold boolean
) RETURNS TABLE (
    rank bigint, image_id bigint, distance double precision, similarity double precision,
    category text, known_label text, known_defect_type text, path text, split text, part text,
    copies integer, region_id bigint, region_box text, searched_by text
)
LANGUAGE sql
VOLATILE
ROWS 10
SET search_path = pg_catalog, :"vector_schema"
AS $$
    SELECT n.rank, i.id, n.distance, 1 - n.distance, c.name, i.known_label, i.known_defect_type,
           r.path || '/' || i.path, i.split, i.group_name, n.copies, g.id,
           concat_ws(',', g.x, g.y, g.width, g.height), searched
    FROM pgdefect.nearest(searched, extractor, query, k, filter, fold => fold)
        WITH ORDINALITY n (image_id, region_id, distance, copies, rank)
    JOIN pgdefect.image i ON i.id = n.image_id
    JOIN pgdefect.category c ON c.id = i.category_id
    JOIN pgdefect.image_root r ON r.id = i.root_id
    LEFT JOIN pgdefect.defect_region g ON g.extractor_id = extractor AND g.id = n.region_id
    ORDER BY n.rank
$$;

COMMENT ON FUNCTION pgdefect.neighbors IS
'The rows of defect.similar_images and defect.similar_regions. Example: SELECT n.* FROM pgdefect.image_embedding e, pgdefect.neighbors(''picture'', e.extractor_id, e.embedding::vector, 5, ''{}'', true) n WHERE e.image_id = 7;';
