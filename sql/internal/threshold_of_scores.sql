-- The threshold that rejects at most a share of new normal images, from scores in rising order.
--
-- The ⌈(n + 1)(1 - rate)⌉-th smallest of n scores, the largest where there are too few, and never
-- below their median.
--
-- Same rule in Python:
--   pgdefect.core.thresholds.false_reject_rate
CREATE OR REPLACE FUNCTION pgdefect.threshold_of_scores(
    scores double precision[], rate double precision
) RETURNS double precision
LANGUAGE sql
IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog
AS $$
    SELECT greatest(
        scores[least(greatest(ceil((n.count + 1) * (1 - rate) - 1e-9::double precision), 1), n.count)],
        n.median + greatest(1e-6::double precision * greatest(abs(n.median), 1e-9), 1e-9))
    FROM (
        SELECT cardinality(scores) AS count,
               (scores[(cardinality(scores) + 1) / 2] + scores[cardinality(scores) / 2 + 1]) / 2
                   AS median
    ) n
$$;

COMMENT ON FUNCTION pgdefect.threshold_of_scores IS
'The threshold that rejects at most a share of new normal images, from scores of normal images in rising order. Used by defect.threshold_for.';
