-- The k memory-bank vectors nearest to one of the same bank, each with its image and cell.
--
-- The vector itself comes first, at distance 0. distance is in the bank's metric;
-- similarity is 1 - cosine distance, NULL for other metrics. Image and cell are NULL in an
-- imported bank, which does not say where its vectors came from.
CREATE OR REPLACE FUNCTION defect.similar_patches(
    bank bigint,
    "position" integer,
    k integer DEFAULT 10
) RETURNS TABLE (
    rank bigint, nearest_position integer, distance double precision,
    similarity double precision, image_id bigint, "row" smallint, col smallint, path text
)
LANGUAGE plpgsql
STABLE
ROWS 10
SET search_path = pg_catalog, :"vector_schema"
AS $$
#variable_conflict use_column
DECLARE
    query vector;
BEGIN
    SELECT p.embedding INTO query FROM pgdefect.memory_bank_patch p
    WHERE p.bank_id = bank AND p.position = similar_patches.position;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'memory bank % has no vector %', bank, similar_patches.position
            USING ERRCODE = 'PD404',
                  HINT = 'SELECT bank_id, num_vectors FROM defect.banks shows what there is; positions start at 0.';
    END IF;
    IF k IS NULL OR k < 1 THEN
        RAISE EXCEPTION 'k must be at least 1, not %', coalesce(k::text, 'NULL') USING ERRCODE = 'PD400';
    END IF;
    RETURN QUERY
        SELECT row_number() OVER (ORDER BY n.distance, n.nearest_position), n.nearest_position,
               n.distance, CASE b.metric WHEN 'cosine' THEN 1 - n.distance END,
               nullif(p.image_id, 0), CASE WHEN p.image_id > 0 THEN p.row END,
               CASE WHEN p.image_id > 0 THEN p.col END, r.path || '/' || i.path
        FROM pgdefect.nearest_bank_vectors(bank, query, k) n
        JOIN pgdefect.memory_bank b ON b.id = bank
        JOIN pgdefect.memory_bank_patch p ON p.bank_id = bank AND p.position = n.nearest_position
        LEFT JOIN pgdefect.image i ON i.id = p.image_id
        LEFT JOIN pgdefect.image_root r ON r.id = i.root_id
        ORDER BY 1;
END
$$;

COMMENT ON FUNCTION defect.similar_patches IS
'The k vectors of a memory bank nearest to one of its own vectors, with the normal image and grid cell each came from. Example: SELECT * FROM defect.similar_patches(bank => 1, "position" => 0);';
