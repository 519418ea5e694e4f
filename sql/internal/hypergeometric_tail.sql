-- The probability of `hits` or fewer (direction -1), or of `hits` or more (1), marked ones among
-- `drawn` of `total`, of which `marked` are marked; hits lies on that side of the most probable
-- number.
--
-- Up to 4,000 terms are added, each made from the one before it; a longer tail is an integral of
-- the smooth curve through them, by Gauss and Legendre's points, corrected by Euler and Maclaurin's
-- next term (relative error below 1e-9).
CREATE OR REPLACE FUNCTION pgdefect.hypergeometric_tail(
    hits bigint, direction integer, drawn bigint, marked bigint, total bigint
) RETURNS double precision
LANGUAGE plpgsql
IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog
AS $$
DECLARE
    added CONSTANT integer := 4000;
    first double precision := pgdefect.ln_hypergeometric(hits, drawn, marked, total);
    steps bigint := CASE direction WHEN 1 THEN least(drawn, marked) - hits
                    ELSE hits - greatest(0, drawn - (total - marked)) END;
    near bigint := 0;
    middle bigint;
    share double precision;
    half double precision;
    slope double precision;
BEGIN
    IF first < -700 THEN
        RETURN 0;
    END IF;
    -- Where the terms no longer count.
    IF steps > 1 AND pgdefect.ln_hypergeometric(hits + direction * steps, drawn, marked, total) < first - 45 THEN
        WHILE steps - near > 1 LOOP
            middle := near + (steps - near) / 2;
            IF pgdefect.ln_hypergeometric(hits + direction * middle, drawn, marked, total) < first - 45 THEN
                steps := middle;
            ELSE
                near := middle;
            END IF;
        END LOOP;
    END IF;
    IF steps <= added THEN
        SELECT 1 + coalesce(sum(exp(c.log)), 0) INTO share
        FROM (
            SELECT sum(CASE direction
                       WHEN 1 THEN ln((drawn - k.hits) * ((marked - k.hits)::double precision
                           / ((k.hits + 1) * ((total - marked - drawn)::double precision + k.hits + 1))))
                       ELSE ln(k.hits * (((total - marked - drawn)::double precision + k.hits)
                           / ((drawn - k.hits + 1) * (marked - k.hits + 1)::double precision))) END)
                   OVER (ORDER BY k.step) AS log
            FROM (SELECT step, (hits + direction * step)::double precision AS hits
                  FROM generate_series(0, steps - 1) step) k
        ) c
        WHERE c.log > -700;
        RETURN exp(first) * share;
    END IF;
    half := steps / 2.0;
    SELECT half * sum(g.weight * exp(greatest(-700, pgdefect.ln_hypergeometric(
        hits + direction * (half * (1 + g.x) - 0.5), drawn, marked, total) - first)))
    INTO share
    FROM pgdefect.gauss_legendre() g;
    -- Towards larger terms the curve rises: a sum is its integral less a 24th of the slope.
    slope := exp(pgdefect.ln_hypergeometric(hits - direction, drawn, marked, total) - first) - 1;
    RETURN exp(first) * (share - slope / 24);
END
$$;

COMMENT ON FUNCTION pgdefect.hypergeometric_tail IS
'The hypergeometric probability of a number of hits or fewer (direction -1) or more (1). Used by defect.fisher_p.';
