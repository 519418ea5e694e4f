-- The share of as many new parts that exceed the accepted-th smallest score of `parts`.
--
-- How many do is beta-binomially distributed, whatever the scores' distribution; the interval
-- leaves out at most 2.5 % on either side.
--
-- Same rule in Python:
--   pgdefect.core.thresholds.rejects_interval
CREATE OR REPLACE FUNCTION pgdefect.rejects_interval(parts integer, accepted integer)
RETURNS double precision[]
LANGUAGE plpgsql
IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog
AS $$
DECLARE
    a double precision := parts + 1 - accepted;
    b double precision := accepted;
    tail double precision := (1 - 0.95::double precision) / 2;
    probability double precision := exp((
        SELECT sum(ln((b + n) / (a + b + n))) FROM generate_series(0, parts - 1) n));
    total double precision := 0;
    low integer;
    k integer := 0;
BEGIN
    LOOP
        total := total + probability;
        IF low IS NULL AND total > tail THEN
            low := k;
        END IF;
        EXIT WHEN total >= 1 - tail OR k = parts;
        probability := probability * (parts - k) / (k + 1) * (k + a) / (parts - k - 1 + b);
        k := k + 1;
    END LOOP;
    RETURN ARRAY[coalesce(low, 0)::double precision / parts, k::double precision / parts];
END
$$;

COMMENT ON FUNCTION pgdefect.rejects_interval IS
'Where the share of rejects among as many new parts lies in 95 % of all cases, for a threshold that is the accepted-th smallest score of so many parts. Used by defect.threshold_for.';
