-- Raises PD400 unless the word is one of the splits that images have.
--
-- Same rule in Python:
--   pgdefect.core.words.SPLITS
CREATE OR REPLACE FUNCTION pgdefect.check_split(split text) RETURNS void
LANGUAGE plpgsql
IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog
AS $$
BEGIN
    IF (split IN ('train', 'test', 'production', 'simulated')) IS NOT TRUE THEN
        RAISE EXCEPTION 'the split is train, test, production or simulated, not %',
            coalesce(quote_literal(split), 'NULL')
            USING ERRCODE = 'PD400',
                  HINT = 'SELECT split, count(*) FROM defect.images GROUP BY 1 counts their images.';
    END IF;
END
$$;

COMMENT ON FUNCTION pgdefect.check_split IS
'Refuses a word that is no split. Used by defect.what_if and defect.image_auroc.';
