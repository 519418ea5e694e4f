-- How sure one can be of a rate: the exact 95 % interval (Clopper and Pearson) behind a count
-- out of a total; NULL where the total is 0.
--
-- Same rule in Python:
--   pgdefect.core.thresholds.rate_interval
CREATE OR REPLACE FUNCTION defect.rate_interval(count bigint, total bigint)
RETURNS double precision[]
LANGUAGE plpgsql
IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog
AS $$
BEGIN
    IF count < 0 OR count > total THEN
        RAISE EXCEPTION '% of % is no share', count, total
            USING ERRCODE = 'PD400', HINT = 'Name the part first and the total second.';
    END IF;
    RETURN CASE WHEN total > 0 THEN ARRAY[
        CASE WHEN count > 0 THEN
            pgdefect.beta_quantile((1 - 0.95::double precision) / 2,
                                   count, total::double precision - count + 1)
        ELSE 0 END,
        CASE WHEN count < total THEN
            pgdefect.beta_quantile((1 + 0.95::double precision) / 2,
                                   count::double precision + 1, total - count)
        ELSE 1 END
    ] END;
END
$$;

COMMENT ON FUNCTION defect.rate_interval IS
'The exact 95 % interval of the rate behind a count out of a total, as {low,high}. Example: SELECT defect.rate_interval(count(*) FILTER (WHERE verdict = ''anomalous''), count(*)) FROM defect.images WHERE label = ''normal'' AND verdict IS NOT NULL;';
