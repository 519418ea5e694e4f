-- What sentences call a kind of detector. The branches come from the table of kinds in Python.
--
-- Same rule in Python:
--   pgdefect.core.detector_kinds.KINDS
CREATE OR REPLACE FUNCTION pgdefect.kind_noun(kind text)
RETURNS text
LANGUAGE sql
IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog
AS $$
    SELECT CASE kind
:kind_nouns
    ELSE format('a detector of the kind %s', quote_literal(kind)) END
$$;

COMMENT ON FUNCTION pgdefect.kind_noun IS
'A kind of detector with its article, for messages. Used by defect.nearest_normal. Example: SELECT pgdefect.kind_noun(''patchcore'');';
