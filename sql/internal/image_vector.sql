-- What a stored image is searched by: its image embedding, its defect embedding, or that of its
-- worst region; of one extractor.
CREATE OR REPLACE FUNCTION pgdefect.image_vector(
    image_id bigint,
    searched text,
    extractor bigint
) RETURNS :"vector_schema".vector
LANGUAGE plpgsql
STABLE
SET search_path = pg_catalog, :"vector_schema"
AS $$
DECLARE
    v record := pgdefect.searched_vectors(searched, extractor);
    found vector;
BEGIN
    EXECUTE format('SELECT embedding::vector FROM pgdefect.%I WHERE extractor_id = %s AND image_id = $1 %s',
                   v.relation, extractor, CASE searched WHEN 'region' THEN 'ORDER BY rank LIMIT 1' END)
    INTO found USING image_id;
    IF found IS NULL AND searched = 'picture' THEN
        RAISE EXCEPTION 'image % has no embedding by extractor % yet', image_id, extractor
            USING ERRCODE = 'PD404',
                  HINT = 'pgdefect inspect or pgdefect train makes embeddings of a category''s images.';
    ELSIF found IS NULL THEN
        RAISE EXCEPTION 'image % has no % embedding by extractor %', image_id,
            CASE searched WHEN 'region' THEN 'region''s' ELSE 'defect' END, extractor
            USING ERRCODE = 'PD404',
                  HINT = 'pgdefect inspect makes them of images it finds anomalous; or search by picture.';
    END IF;
    RETURN found;
END
$$;

COMMENT ON FUNCTION pgdefect.image_vector IS
'The vector that a stored image is searched by: picture, defect, or region (its worst). Example: SELECT vector_dims(pgdefect.image_vector(7, ''picture'', 1));';
