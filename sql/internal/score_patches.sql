-- For each query vector its nearest memory-bank vector: what an anomaly map is made of.
--
-- bank      the memory bank's id
-- patches   transformed patch embeddings of one or more images, in one array
-- ef        HNSW's candidate list; NULL takes the bank's calibrated value
-- exact     true scans the bank instead of the index
--
-- Returns one row per query vector: its place in the array (from 0), the position of the
-- nearest vector in the bank, and the distance in the bank's metric. A distance from the
-- index is an upper bound of the true one.
CREATE OR REPLACE FUNCTION pgdefect.score_patches(
    bank bigint,
    patches :"vector_schema".vector[],
    ef integer DEFAULT NULL,
    exact boolean DEFAULT false
) RETURNS TABLE (patch integer, nearest_position integer, distance double precision)
LANGUAGE plpgsql
STABLE
ROWS 1024
SET search_path = pg_catalog, :"vector_schema"
SET hnsw.ef_search = 40 -- a placeholder: set below, and restored at the end of the call
AS $$
DECLARE
    s record := pgdefect.bank_search(bank, 'q.v');
BEGIN
    -- The setting ends with this call, because the function has a SET clause for it.
    PERFORM set_config('hnsw.ef_search', coalesce(ef, s.ef_search)::text, true);
    RETURN QUERY EXECUTE format(
        'SELECT q.n::integer - 1, p.position, p.distance
         FROM (SELECT n, v::%1$s AS v FROM unnest($1) WITH ORDINALITY u(v, n) OFFSET 0) q
         CROSS JOIN LATERAL (
             SELECT position, (%2$s)::double precision AS distance
             FROM pgdefect.memory_bank_patch
             WHERE bank_id = %3$s
             ORDER BY %4$s
             LIMIT 1
         ) p',
        s.vector_type, s.distance, bank, CASE WHEN exact THEN s.exact_order ELSE s.distance END
    ) USING patches;
END
$$;

COMMENT ON FUNCTION pgdefect.score_patches IS
'For each query vector its nearest vector of a memory bank and the distance in the bank''s metric. Used by `pgdefect inspect`; vectors must be transformed as the bank''s are.';
