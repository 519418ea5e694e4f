-- A word as a shell takes it for one: in quotes where it holds more than letters, digits and
-- what paths are made of.
CREATE OR REPLACE FUNCTION pgdefect.shell_word(word text) RETURNS text
LANGUAGE sql
IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog
AS $$
    SELECT CASE WHEN word ~ '^[A-Za-z0-9_@%+=:,./-]+$' THEN word
                ELSE '''' || replace(word, '''', '''"''"''') || '''' END
$$;

COMMENT ON FUNCTION pgdefect.shell_word IS
'A word as a shell takes it for one. Used in hints that name a command.';
