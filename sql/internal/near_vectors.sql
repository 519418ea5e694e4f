-- Memory-bank vectors near any of some patches: what the patches beside them are near to as well.
--
-- bank     the memory bank's id
-- patches  transformed patch embeddings, in one array: every other one of an image, say
-- ef       HNSW's candidate list, and how many are taken for each patch; NULL takes the bank's
--          calibrated value
--
-- Returns each vector once. Patches that lie side by side resemble one another: comparing all of
-- an image with what half of them are near to finds more nearest vectors than a search for each,
-- in half the time.
CREATE OR REPLACE FUNCTION pgdefect.near_vectors(
    bank bigint,
    patches :"vector_schema".vector[],
    ef integer DEFAULT NULL
) RETURNS TABLE (near_position integer, embedding :"vector_schema".vector)
LANGUAGE plpgsql
STABLE
ROWS 1000
SET search_path = pg_catalog, :"vector_schema"
SET hnsw.ef_search = 40 -- a placeholder: set below, and restored at the end of the call
AS $$
DECLARE
    s record := pgdefect.bank_search(bank, 'q.v');
BEGIN
    ef := coalesce(ef, s.ef_search);
    PERFORM set_config('hnsw.ef_search', ef::text, true);
    RETURN QUERY EXECUTE format(
        'SELECT DISTINCT ON (p.position) p.position, p.embedding::vector
         FROM (SELECT v::%1$s AS v FROM unnest($1) u(v) OFFSET 0) q
         CROSS JOIN LATERAL (
             SELECT position, embedding
             FROM pgdefect.memory_bank_patch
             WHERE bank_id = %2$s
             ORDER BY %3$s
             LIMIT %4$s
         ) p',
        s.vector_type, bank, s.distance, ef
    ) USING patches;
END
$$;

COMMENT ON FUNCTION pgdefect.near_vectors IS
'Memory-bank vectors near any of some patches, each once: candidates for the nearest of the patches beside them. Used by `pgdefect inspect`; vectors must be transformed as the bank''s are.';
