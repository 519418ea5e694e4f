-- The k stored images most like a stored image, nearest first.
--
-- image is an id, the end of a path, or the start of a sha256. distance is the cosine
-- distance of the image embeddings, 0 to 2; similarity is 1 - distance. The image itself
-- and copies of its file are left out; exclude_group leaves out every image of its part.
-- Images with simulated defects are listed only if simulated is true.
-- Embeddings are those of the extractor of the category's active detector: of the kind that
-- model names (patchcore, efficient_ad), else PatchCore's where one of each kind is active,
-- else of the newest extractor the image has an embedding of.
CREATE OR REPLACE FUNCTION defect.similar_images(
    image text,
    k integer DEFAULT 10,
    category text DEFAULT NULL,
    label text DEFAULT NULL,
    defect_type text DEFAULT NULL,
    exclude_group boolean DEFAULT false,
    simulated boolean DEFAULT false,
    model text DEFAULT NULL
) RETURNS TABLE (
    rank bigint, image_id bigint, distance double precision, similarity double precision,
    category_name text, image_label text, image_defect_type text, path text, image_split text
)
LANGUAGE plpgsql
STABLE
ROWS 10
SET search_path = pg_catalog, :"vector_schema"
AS $$
#variable_conflict use_column
DECLARE
    query_id bigint := defect.find_image(image);
    query_embedding record;
BEGIN
    SELECT e.extractor_id, e.embedding INTO query_embedding
    FROM pgdefect.image_embedding e
    JOIN pgdefect.image i ON i.id = e.image_id
    LEFT JOIN pgdefect.detector d
        ON d.category_id = i.category_id AND d.active AND d.extractor_id = e.extractor_id
    WHERE e.image_id = query_id AND (model IS NULL OR d.kind = model)
    ORDER BY d.id IS NULL, d.kind <> 'patchcore', e.extractor_id DESC
    LIMIT 1;
    IF NOT FOUND AND model IS NOT NULL THEN
        RAISE EXCEPTION 'image % has no embedding by an active % detector', query_id, quote_literal(model)
            USING ERRCODE = 'PD404',
                  HINT = 'SELECT kind, category FROM defect.detectors WHERE active; models are patchcore and efficient_ad.';
    ELSIF NOT FOUND THEN
        RAISE EXCEPTION 'image % has no embedding yet', query_id
            USING ERRCODE = 'PD404',
                  HINT = 'pgdefect inspect or pgdefect train makes embeddings of a category''s images.';
    END IF;
    RETURN QUERY
        SELECT row_number() OVER (ORDER BY n.distance, i.id), i.id, n.distance, 1 - n.distance,
               c.name, i.label, i.defect_type, r.path || '/' || i.path, i.split
        FROM pgdefect.nearest_images(
            query_embedding.extractor_id, query_embedding.embedding, k,
            similar_images.category, similar_images.label, similar_images.defect_type,
            except_image => query_id, except_group => exclude_group,
            simulated => similar_images.simulated) n
        JOIN pgdefect.image i ON i.id = n.image_id
        JOIN pgdefect.category c ON c.id = i.category_id
        JOIN pgdefect.image_root r ON r.id = i.root_id
        ORDER BY 1;
END
$$;

COMMENT ON FUNCTION defect.similar_images IS
'The k stored images most like a stored one, by cosine distance of image embeddings (0 to 2), under optional filters; with simulated defects, whose image_split is simulated, only on demand. Example: SELECT * FROM defect.similar_images(''scratch/003.png'', k => 10, label => ''anomalous'');';
