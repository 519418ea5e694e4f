-- A whole number in a JSON object; NULL where there is none, or none that bigint holds.
CREATE OR REPLACE FUNCTION pgdefect.json_integer(document jsonb, key text) RETURNS bigint
LANGUAGE plpgsql
IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog
AS $$
DECLARE
    found numeric;
BEGIN
    IF jsonb_typeof(document->key) = 'number' THEN
        found := (document->key)::numeric;
        RETURN CASE WHEN found = trunc(found) AND abs(found) < 9e18 THEN found::bigint END;
    END IF;
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION pgdefect.json_integer IS
'A whole number in a JSON object, NULL where there is none: views must not fail for what somebody wrote. Used by views.';
