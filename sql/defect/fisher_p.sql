-- Whether two rates differ by more than chance: the two-sided p-value of Fisher's exact test.
--
-- a_hits of a_total against b_hits of b_total: rejected parts of two shifts, say. The chance that
-- two groups of these sizes with one rate in common, and as many hits between them, come out as
-- unlikely as this or more so. Small: they differ (0.011 for 7 of 20 against 0 of 16, which
-- intervals that overlap would hide). As scipy.stats.fisher_exact has it; 1 where a total is 0.
CREATE OR REPLACE FUNCTION defect.fisher_p(a_hits bigint, a_total bigint, b_hits bigint, b_total bigint)
RETURNS double precision
LANGUAGE plpgsql
IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog
AS $$
DECLARE
    largest CONSTANT bigint := 1000000000000000;
    hits bigint;
    total bigint;
    -- The fewest, the most probable and the most hits that a may have.
    fewest bigint;
    mode bigint;
    most bigint;
    level double precision;
    inner_end bigint;
    outer_end bigint;
    middle bigint;
    direction integer;
    p double precision := 0;
BEGIN
    IF a_hits < 0 OR a_hits > a_total OR b_hits < 0 OR b_hits > b_total THEN
        RAISE EXCEPTION '% of % and % of % are no two shares', a_hits, a_total, b_hits, b_total
            USING ERRCODE = 'PD400', HINT = 'Name the hits first and the total second, of one group and then of the other.';
    ELSIF greatest(a_total, b_total) > largest THEN
        RAISE EXCEPTION 'groups of % and % are too large to compare', a_total, b_total
            USING ERRCODE = 'PD400', HINT = 'A total may be 1e15 at most.';
    END IF;
    hits := a_hits + b_hits;
    total := a_total + b_total;
    fewest := greatest(0, a_total - (total - hits));
    most := least(a_total, hits);
    IF fewest = most THEN
        RETURN 1;
    END IF;
    mode := greatest(fewest, least(most, floor((a_total + 1.0) * (hits + 1) / (total + 2))::bigint));
    -- Tables as likely as this one count too; rounding must not tell them apart.
    level := pgdefect.ln_hypergeometric(a_hits, a_total, hits, total) + 1e-9;
    IF pgdefect.ln_hypergeometric(mode, a_total, hits, total) <= level THEN
        RETURN 1;
    END IF;
    FOREACH direction IN ARRAY ARRAY[-1, 1] LOOP
        -- The nearest number of hits on this side that is no likelier.
        inner_end := mode;
        outer_end := CASE direction WHEN 1 THEN most ELSE fewest END;
        CONTINUE WHEN pgdefect.ln_hypergeometric(outer_end, a_total, hits, total) > level;
        WHILE abs(outer_end - inner_end) > 1 LOOP
            middle := inner_end + (outer_end - inner_end) / 2;
            IF pgdefect.ln_hypergeometric(middle, a_total, hits, total) <= level THEN
                outer_end := middle;
            ELSE
                inner_end := middle;
            END IF;
        END LOOP;
        p := p + pgdefect.hypergeometric_tail(outer_end, direction, a_total, hits, total);
    END LOOP;
    RETURN least(p, 1);
END
$$;

COMMENT ON FUNCTION defect.fisher_p IS
'The two-sided p-value of Fisher''s exact test: the chance that a_hits of a_total and b_hits of b_total differ as much by chance alone. Example: SELECT defect.fisher_p(a_hits => 7, a_total => 20, b_hits => 0, b_total => 16);';
