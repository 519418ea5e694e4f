-- For each query vector a memory-bank vector nearer than the one already found: proves distances.
--
-- bank      the memory bank's id
-- patches   transformed patch embeddings, in one array
-- known     the distance found for each, in the bank's metric
--
-- Reads the whole bank once, past the index. Returns one row per query vector that has a nearer
-- one: its place in the array (from 0), the position of the nearest vector in the bank, the
-- distance. Sifting a bank by distances takes less than half the time of sorting it, and by
-- several at once less than by one after the other.
CREATE OR REPLACE FUNCTION pgdefect.nearer_patches(
    bank bigint,
    patches :"vector_schema".vector[],
    known double precision[]
) RETURNS TABLE (patch integer, nearest_position integer, distance double precision)
LANGUAGE plpgsql
STABLE
ROWS 1
SET search_path = pg_catalog, :"vector_schema"
AS $$
DECLARE
    s record := pgdefect.bank_search(bank, '%1$s');
    sieve text;
BEGIN
    -- By subscript, so that each vector is a constant of the plan.
    SELECT string_agg(format('%s < ($2)[%s]', format(s.distance, format('($1)[%s]', n)), n), ' OR ')
    INTO sieve
    FROM generate_series(1, cardinality(patches)) n;
    IF sieve IS NULL THEN
        RETURN;
    END IF;
    RETURN QUERY EXECUTE format(
        'SELECT DISTINCT ON (q.n) q.n::integer - 1, near.position, x.distance
         FROM (SELECT position, embedding FROM pgdefect.memory_bank_patch
               WHERE bank_id = %s AND (%s) OFFSET 0) near
         CROSS JOIN unnest($1, $2) WITH ORDINALITY q(v, known, n)
         CROSS JOIN LATERAL (SELECT (%s)::double precision AS distance) x
         WHERE x.distance < q.known
         ORDER BY q.n, x.distance, near.position',
        bank, sieve, format(s.distance, 'q.v')
    ) USING patches, known;
END
$$;

COMMENT ON FUNCTION pgdefect.nearer_patches IS
'For each query vector the nearest vector of a memory bank, where it is nearer than the distance given. Used by pgdefect.prove_worst; vectors must be transformed as the bank''s are.';
