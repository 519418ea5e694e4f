-- The quantile of the Beta distribution for whole a, b >= 1.
--
-- Its distribution function at x is the chance of a or more successes in a + b - 1 trials of
-- chance x; solved by bisection, summing the shorter tail.
--
-- Same rule in Python:
--   pgdefect.core.thresholds.beta_quantile
CREATE OR REPLACE FUNCTION pgdefect.beta_quantile(
    probability double precision, a integer, b integer
) RETURNS double precision
LANGUAGE plpgsql
IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog
AS $$
DECLARE
    trials integer := a + b - 1;
    upper_tail boolean := b <= a;
    -- ln C(trials, k) for the shorter tail, counted from its own end: C(n, k) = C(n, n - k).
    choose double precision[] := ARRAY(
        SELECT sum(CASE k WHEN 0 THEN 0.0::double precision
                          ELSE ln((trials - k + 1) / k::double precision) END) OVER (ORDER BY k)
        FROM generate_series(0, least(a, b) - 1) k ORDER BY k);
    low double precision := 0;
    high double precision := 1;
    x double precision;
    near double precision;
    far double precision;
    tail double precision;
BEGIN
    FOR step IN 1..50 LOOP
        x := (low + high) / 2;
        -- k failures among the upper tail, k successes among the lower one.
        near := CASE WHEN upper_tail THEN 1 - x ELSE x END;
        far := CASE WHEN upper_tail THEN x ELSE 1 - x END;
        SELECT sum(exp(greatest(-700, c + (n - 1) * ln(near) + (trials - n + 1) * ln(far))))
        INTO tail FROM unnest(choose) WITH ORDINALITY u(c, n);
        IF (CASE WHEN upper_tail THEN tail ELSE 1 - tail END) < probability THEN
            low := x;
        ELSE
            high := x;
        END IF;
    END LOOP;
    RETURN (low + high) / 2;
END
$$;

COMMENT ON FUNCTION pgdefect.beta_quantile IS
'The quantile of Beta(a, b) for whole a and b. Used by the functions that give a rate its uncertainty.';
