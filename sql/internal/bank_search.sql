-- How to search one memory bank: the expression that its index is on.
--
-- bank         the memory bank's id
-- query        SQL text for the vector to compare with
--
-- vector_type is what the index holds. distance is SQL text over pgdefect.memory_bank_patch;
-- exact_order sorts by it past the index. ef_search is the bank's calibrated one.
CREATE OR REPLACE FUNCTION pgdefect.bank_search(
    bank bigint,
    query text,
    OUT vector_type text,
    OUT distance text,
    OUT exact_order text,
    OUT ef_search integer
)
LANGUAGE plpgsql
STABLE
SET search_path = pg_catalog
AS $$
DECLARE
    b pgdefect.memory_bank;
BEGIN
    SELECT * INTO b FROM pgdefect.memory_bank WHERE id = bank;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no memory bank %', bank
            USING ERRCODE = 'PD404', HINT = 'SELECT * FROM defect.banks lists them.';
    END IF;
    vector_type := format('%s(%s)', b.indexed_type, b.embedding_dim);
    distance := format('embedding::%1$s %2$s %3$s::%1$s', vector_type, b.operator, query);
    -- Adding zero hides the expression from the index.
    exact_order := format('(%s) + 0, position', distance);
    ef_search := b.ef_search;
END
$$;

COMMENT ON FUNCTION pgdefect.bank_search IS
'SQL text to search one memory bank with: the type its index holds, the distance its index is on, the same past the index, and the calibrated ef_search. Used by the functions that search banks.';
