-- A number in a JSON object; NULL where there is none, or none that double precision holds.
CREATE OR REPLACE FUNCTION pgdefect.json_number(document jsonb, key text) RETURNS double precision
LANGUAGE plpgsql
IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog
AS $$
DECLARE
    found numeric;
BEGIN
    IF jsonb_typeof(document->key) = 'number' THEN
        found := (document->key)::numeric;
        RETURN CASE WHEN found = 0 OR abs(found) BETWEEN 1e-300 AND 1e300 THEN found::double precision END;
    END IF;
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION pgdefect.json_number IS
'A number in a JSON object, NULL where there is none: views must not fail for what somebody wrote. Used by views.';
