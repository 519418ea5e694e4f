-- For each query vector a memory-bank vector nearer than the one already found: proves a maximum.
--
-- bank      the memory bank's id
-- patches   transformed patch embeddings, in one array
-- known     the distance found for each, in the bank's metric
--
-- Reads the whole bank, past the index. Returns one row per query vector that has a nearer one:
-- its place in the array (from 0), the position of the nearest vector in the bank, the distance.
-- Sifting a bank by a distance takes less than half the time of sorting it.
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
    s record := pgdefect.bank_search(bank, '$2');
    statement text := format(
        'SELECT $1 - 1, position, (%1$s)::double precision
         FROM pgdefect.memory_bank_patch
         WHERE bank_id = %2$s AND (%1$s) < $3
         ORDER BY %3$s
         LIMIT 1',
        s.distance, bank, s.exact_order
    );
BEGIN
    FOR n IN 1 .. cardinality(patches) LOOP
        RETURN QUERY EXECUTE statement USING n, patches[n], known[n];
    END LOOP;
END
$$;

COMMENT ON FUNCTION pgdefect.nearer_patches IS
'For each query vector the nearest vector of a memory bank, where it is nearer than the distance given. Used by pgdefect.prove_worst; vectors must be transformed as the bank''s are.';
