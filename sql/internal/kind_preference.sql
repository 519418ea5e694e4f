-- Which of a category's active detectors answers where none is named: the lowest number. Unknown
-- kinds come last. The branches come from the table of kinds in Python.
--
-- Same rule in Python:
--   pgdefect.core.detector_kinds.preference
CREATE OR REPLACE FUNCTION pgdefect.kind_preference(kind text)
RETURNS integer
LANGUAGE sql
IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog
AS $$
    SELECT CASE kind
:kind_preferences
    ELSE 1000 END
$$;

COMMENT ON FUNCTION pgdefect.kind_preference IS
'The place of a kind of detector in the order of preference; PatchCore is 0. Used by defect.categories, defect.similar_images. Example: SELECT pgdefect.kind_preference(''efficient_ad'');';
