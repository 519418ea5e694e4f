-- The k vectors of one memory bank nearest to a query vector.
--
-- The query must be transformed as the bank's vectors are. Distances are in the bank's
-- metric. exact scans the bank instead of the index.
CREATE OR REPLACE FUNCTION pgdefect.nearest_bank_vectors(
    bank bigint,
    query :"vector_schema".vector,
    k integer DEFAULT 10,
    exact boolean DEFAULT false
) RETURNS TABLE (nearest_position integer, distance double precision)
LANGUAGE plpgsql
STABLE
ROWS 10
SET search_path = pg_catalog, :"vector_schema"
SET hnsw.ef_search = 40 -- a placeholder: set below, and restored at the end of the call
AS $$
DECLARE
    s record := pgdefect.bank_search(bank, '$1');
BEGIN
    PERFORM set_config('hnsw.ef_search', least(1000, greatest(s.ef_search, 4 * k::bigint))::text, true);
    RETURN QUERY EXECUTE format(
        'SELECT position, (%1$s)::double precision
         FROM pgdefect.memory_bank_patch
         WHERE bank_id = %2$s
         ORDER BY %3$s LIMIT $2',
        s.distance, bank, CASE WHEN exact OR k > 250 THEN s.exact_order ELSE s.distance END
    ) USING query, k;
END
$$;

COMMENT ON FUNCTION pgdefect.nearest_bank_vectors IS
'The k vectors of one memory bank nearest to a (transformed) query vector, with distances in the bank''s metric.';
