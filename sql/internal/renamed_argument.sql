-- The value of an argument that had another name in an earlier version: a function keeps the
-- old name as its last argument for one version.
--
-- function_name  the public function, for what is said
-- new_name, new_value, old_name, old_value  both names, and what the caller gave to each
--
-- Says so in a NOTICE where the old name is used; refuses both at once.
CREATE OR REPLACE FUNCTION pgdefect.renamed_argument(
    function_name text,
    new_name text,
    new_value anyelement,
    old_name text,
    old_value anyelement
) RETURNS anyelement
LANGUAGE plpgsql
STABLE PARALLEL SAFE
SET search_path = pg_catalog
AS $$
BEGIN
    IF old_value IS NULL THEN
        RETURN new_value;
    END IF;
    IF new_value IS NOT NULL THEN
        RAISE EXCEPTION 'defect.% was given both % and %, which is the old name of it',
            function_name, quote_ident(new_name), quote_ident(old_name)
            USING ERRCODE = 'PD400', HINT = format('Give %I alone.', new_name);
    END IF;
    RAISE NOTICE 'the argument % of defect.% is called % now; the next version will not know the old name',
        quote_ident(old_name), function_name, quote_ident(new_name);
    RETURN old_value;
END
$$;

COMMENT ON FUNCTION pgdefect.renamed_argument IS
'The value of an argument given under its new or its old name, with a NOTICE for the old one. Used by the public functions whose arguments were renamed.';
