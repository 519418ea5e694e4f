-- The quantile of the Beta distribution for whole a, b >= 1.
--
-- Where a or b is 1 it is a power. Else Halley's iteration, each step one Gauss-Legendre integral
-- of the density, between the quantile and the end of the shorter tail, where the density
-- is exp(-50) of its peak: a step takes as long for a million trials as for ten. Everything is
-- counted from the peak and scaled by it, so that no gamma function and no difference of large
-- numbers is needed.
--
-- Same rule in Python:
--   pgdefect.core.thresholds.beta_quantile
CREATE OR REPLACE FUNCTION pgdefect.beta_quantile(
    probability double precision, a double precision, b double precision
) RETURNS double precision
LANGUAGE plpgsql
IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog
AS $$
DECLARE
    -- The points from -1 to 1, and with weight 0 the end that is moved.
    xs double precision[];
    ws double precision[];
    reach CONSTANT double precision := 50;
    s double precision := a - 1;
    t double precision := b - 1;
    peak double precision;
    rest double precision;
    low double precision;
    high double precision;
    lower_end double precision;
    upper_end double precision;
    d double precision := 0;
    next double precision;
    step double precision;
    slope double precision;
    area double precision;
    edge double precision;
    total double precision := 0;
    miss double precision;
    side integer := CASE WHEN probability > 0.5 THEN 1 ELSE -1 END;
    center double precision;
    half double precision;
BEGIN
    IF (probability > 0 AND probability < 1 AND a >= 1 AND b >= 1
        AND a < 'Infinity' AND b < 'Infinity') IS NOT TRUE THEN
        RAISE EXCEPTION 'a quantile of Beta(%, %) at % is not defined', a, b, probability
            USING ERRCODE = 'PD400', HINT = 'a and b are at least 1, the probability lies between 0 and 1.';
    ELSIF b = 1 THEN
        RETURN exp(ln(probability) / a);
    ELSIF a = 1 THEN
        -- 1 - (1 - probability) ^ (1 / b), exact for large b as well.
        d := ln(1 - probability) / b;
        RETURN CASE WHEN d < -1e-5 THEN 1 - exp(d) ELSE -d * (1 + d / 2 * (1 + d / 3)) END;
    END IF;
    peak := s / (s + t);
    rest := t / (s + t);
    -- ln(1 + u) - u <= -u^2 / (2 + 2 u) above the peak and <= -u^2 / 2 below it.
    lower_end := -least(rest * (reach / t + sqrt(reach / t * (reach / t + 2))), peak * least(1, sqrt(2 * reach / s)));
    upper_end := least(peak * (reach / s + sqrt(reach / s * (reach / s + 2))), rest * least(1, sqrt(2 * reach / t)));
    low := lower_end;
    high := upper_end;
    SELECT array_agg(g.x), array_agg(g.weight) INTO xs, ws FROM pgdefect.gauss_legendre() g;
    FOR turn IN -1..60 LOOP
        -- Turn -1 measures the other side of the peak, turn 0 the tail's: the whole is their sum.
        IF turn = -1 THEN
            half := CASE side WHEN 1 THEN -lower_end ELSE upper_end END / 2;
            center := CASE side WHEN 1 THEN lower_end ELSE upper_end END / 2;
        ELSIF side = 1 THEN
            half := (upper_end - d) / 2;
            center := (upper_end + d) / 2;
        ELSE
            half := (d - lower_end) / 2;
            center := (d + lower_end) / 2;
        END IF;
        SELECT half * sum(f.w * f.density), max(f.density) FILTER (WHERE f.w = 0) INTO area, edge
        FROM (
            SELECT r.w, exp(greatest(-700, s * CASE
                       WHEN abs(r.u) < 1e-3 THEN
                           -r.u * r.u * (1.0 / 2 - r.u * (1.0 / 3 - r.u * (1.0 / 4 - r.u * (1.0 / 5 - r.u / 6))))
                       ELSE ln(greatest(1 + r.u, 1e-300)) - r.u END
                   + t * CASE
                       WHEN abs(r.v) < 1e-3 THEN
                           -r.v * r.v * (1.0 / 2 - r.v * (1.0 / 3 - r.v * (1.0 / 4 - r.v * (1.0 / 5 - r.v / 6))))
                       ELSE ln(greatest(1 + r.v, 1e-300)) - r.v END)) AS density
            FROM (
                SELECT g.w, (center + half * g.x) / peak AS u, -(center + half * g.x) / rest AS v
                FROM unnest(xs || (-side)::double precision, ws || 0::double precision) g (x, w)
                OFFSET 0
            ) r
        ) f;
        IF turn < 1 THEN
            total := total + area;
            CONTINUE WHEN turn < 0;
        END IF;
        miss := CASE side WHEN 1 THEN (1 - probability) * total - area ELSE area - probability * total END;
        IF miss < 0 THEN
            low := d;
        ELSE
            high := d;
        END IF;
        slope := s / (peak + d) - t / (rest - d);
        step := miss / edge;
        step := step / greatest(0.5, least(2, 1 - step * slope / 2));
        next := d - step;
        IF (next > low AND next < high) IS NOT TRUE THEN
            next := (low + high) / 2;
        END IF;
        step := abs(next - d);
        d := next;
        -- As near as the scale of the tail lets one tell.
        EXIT WHEN step <= 1e-12 * least(peak + d, rest - d);
    END LOOP;
    RETURN peak + d;
END
$$;

COMMENT ON FUNCTION pgdefect.beta_quantile IS
'The quantile of Beta(a, b) for whole a and b. Used by the functions that give a rate its uncertainty.';
