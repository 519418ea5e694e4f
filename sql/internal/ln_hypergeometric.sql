-- ln of the probability that `drawn` of `total`, of which `marked` are marked, hold `hits` marked
-- ones (hypergeometric).
--
-- By the deviances of the four cells from what is expected of them and what Stirling's formula
-- leaves of the nine factorials (Loader 2000): counts of any size keep their digits. Between whole
-- numbers it is the smooth curve through them.
CREATE OR REPLACE FUNCTION pgdefect.ln_hypergeometric(
    hits double precision, drawn double precision, marked double precision, total double precision
) RETURNS double precision
LANGUAGE plpgsql
IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog
AS $$
DECLARE
    -- ln k! less ln(sqrt(2 pi k) (k / e) ^ k), for k from 1 to 15; the series serves beyond.
    remainders CONSTANT double precision[] := '{
        0.081061466795327258, 0.041340695955409294, 0.027677925684998339, 0.020790672103765094,
        0.016644691189821192, 0.013876128823070748, 0.011896709945891770, 0.010411265261972096,
        0.0092554621827127329, 0.0083305634333628713, 0.0075736754879518408, 0.0069428401072095299,
        0.0064089941880042071, 0.0059513701127588476, 0.0055547335519628014}';
    rest CONSTANT double precision := total - marked;
    left_over CONSTANT double precision := total - drawn;
    -- The cells, then the margins, then the total.
    counts CONSTANT double precision[] := ARRAY[
        hits, drawn - hits, marked - hits, rest - (drawn - hits), drawn, left_over, marked, rest, total];
    expected CONSTANT double precision[] := ARRAY[
        drawn * (marked / total), drawn * (rest / total), left_over * (marked / total),
        left_over * (rest / total)];
    found double precision;
BEGIN
    SELECT sum(
        -- What is left of ln k! beside k ln k - k.
        CASE WHEN c.n BETWEEN 5 AND 8 THEN 1 ELSE -1 END
        * CASE WHEN c.k < 1e-9 THEN 0
               ELSE 0.9189385332046727418 + ln(c.k) / 2
                    + CASE WHEN c.k <= 15 AND c.k = floor(c.k) THEN remainders[c.k::integer]
                           ELSE (1.0 / 12 - (1.0 / 360 - (1.0 / 1260 - 1.0 / 1680 / c.square) / c.square) / c.square)
                                / greatest(c.k, 1) END END
        - CASE WHEN c.n > 4 OR c.mean = 0 THEN 0
               WHEN c.k < 1e-9 THEN c.mean
               WHEN abs(c.u) < 1e-3 THEN
                   c.mean * c.u * c.u * (1.0 / 2 - c.u * (1.0 / 6 - c.u * (1.0 / 12 - c.u * (1.0 / 20
                   - c.u * (1.0 / 30 - c.u / 42)))))
               ELSE c.k * ln(c.k / c.mean) - (c.k - c.mean) END)
    INTO found
    FROM (
        SELECT t.n, t.k, t.mean, (t.k - t.mean) / nullif(t.mean, 0) AS u, greatest(t.k * t.k, 1) AS square
        FROM unnest(counts, expected) WITH ORDINALITY t (k, mean, n)
    ) c;
    RETURN found;
END
$$;

COMMENT ON FUNCTION pgdefect.ln_hypergeometric IS
'ln of the hypergeometric probability of a number of hits among what was drawn. Used by defect.fisher_p.';
