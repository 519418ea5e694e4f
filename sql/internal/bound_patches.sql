-- For each patch of an image a memory-bank vector that is near, quickly: upper bounds.
--
-- bank     the memory bank's id
-- patches  transformed patch embeddings of one image, row by row
-- cols     how many lie in a row
--
-- Every second patch of every second row is searched for in the index, with a short list; all
-- patches are compared with what was found for those beside them, which resemble them. A quarter
-- of the searches, and enough to tell which patches may be the worst: pgdefect.prove_worst does
-- the rest. Returns, in the patches' order, positions in the bank and distances.
CREATE OR REPLACE FUNCTION pgdefect.bound_patches(
    bank bigint,
    patches :"vector_schema".vector[],
    cols integer,
    OUT positions integer[],
    OUT distances double precision[]
)
LANGUAGE plpgsql
STABLE
SET search_path = pg_catalog, :"vector_schema"
SET hnsw.ef_search = 40
AS $$
DECLARE
    taken CONSTANT integer := 4;
    s record := pgdefect.bank_search(bank, 'q.v');
BEGIN
    -- Longer lists make better bounds and a slower answer: those that matter are checked anyway.
    PERFORM set_config('hnsw.ef_search', taken::text, true);
    EXECUTE format(
        'WITH patch AS MATERIALIZED (
             SELECT (n - 1)::integer AS n, ((n - 1) / $2)::integer AS y, ((n - 1) %% $2)::integer AS x, v::%1$s AS v
             FROM unnest($1) WITH ORDINALITY u(v, n)
         ), near AS MATERIALIZED (
             SELECT q.y, q.x, p.position, p.embedding
             FROM patch q
             CROSS JOIN LATERAL (
                 SELECT position, embedding::%1$s AS embedding
                 FROM pgdefect.memory_bank_patch
                 WHERE bank_id = %2$s
                 ORDER BY %3$s
                 LIMIT %4$s
             ) p
             WHERE q.y %% 2 = 0 AND q.x %% 2 = 0
         ), bound AS (
             -- Arrays are compared by their first elements, the distances.
             SELECT q.n, min(ARRAY[(p.embedding %5$s q.v)::double precision, p.position]) AS best
             FROM patch q
             JOIN near p ON p.y BETWEEN q.y - 1 AND q.y + 1 AND p.x BETWEEN q.x - 1 AND q.x + 1
             GROUP BY q.n
         )
         SELECT array_agg(best[2]::integer ORDER BY n), array_agg(best[1] ORDER BY n) FROM bound',
        s.vector_type, bank, s.distance, taken,
        (SELECT b.operator FROM pgdefect.memory_bank b WHERE b.id = bank)
    ) INTO positions, distances USING patches, cols;
END
$$;

COMMENT ON FUNCTION pgdefect.bound_patches IS
'For each patch of an image an upper bound of its distance to a memory bank, and the vector that is so near. Used by defect.inspect; vectors must be transformed as the bank''s are.';
