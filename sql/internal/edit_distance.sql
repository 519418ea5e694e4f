-- How many letters must be changed, put in, left out, or swapped with the next to turn one
-- word into the other (optimal string alignment); upper and lower case are the same.
CREATE OR REPLACE FUNCTION pgdefect.edit_distance(a text, b text) RETURNS integer
LANGUAGE plpgsql
IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog
AS $$
DECLARE
    one text[] := string_to_array(lower(a), NULL);
    other text[] := string_to_array(lower(b), NULL);
    width integer := coalesce(cardinality(other), 0);
    before integer[];
    above integer[] := ARRAY(SELECT generate_series(0, width));
    here integer[];
BEGIN
    FOR i IN 1..coalesce(cardinality(one), 0) LOOP
        here := ARRAY[i];
        FOR j IN 1..width LOOP
            here[j + 1] := least(
                above[j + 1] + 1, here[j] + 1, above[j] + (one[i] <> other[j])::integer);
            IF i > 1 AND j > 1 AND one[i] = other[j - 1] AND one[i - 1] = other[j] THEN
                here[j + 1] := least(here[j + 1], before[j - 1] + 1);
            END IF;
        END LOOP;
        before := above;
        above := here;
    END LOOP;
    RETURN above[width + 1];
END
$$;

COMMENT ON FUNCTION pgdefect.edit_distance IS
'How many letters two words differ by. Used by defect.review to ask back about a defect type that may be misspelt. Example: SELECT pgdefect.edit_distance(''scratch'', ''scracth'');';
