-- A distance as a length that can be weighed against others: a cosine distance becomes the
-- Euclidean one of unit vectors. The branches come from the table of metrics in Python.
--
-- Same rule in Python:
--   pgdefect.core.distance.METRICS
CREATE OR REPLACE FUNCTION pgdefect.metric_length(metric text, distance double precision)
RETURNS double precision
LANGUAGE plpgsql
IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog
AS $$
BEGIN
    CASE metric
:metric_lengths
    ELSE
        RAISE EXCEPTION 'unknown metric %', coalesce(quote_literal(metric), 'NULL')
            USING ERRCODE = 'PD400', HINT = 'SELECT bank_id, metric FROM defect.banks lists them.';
    END CASE;
END
$$;

COMMENT ON FUNCTION pgdefect.metric_length IS
'A distance of a metric as a length, which PatchCore''s re-weighting takes the softmax of. Used by defect.inspect. Example: SELECT pgdefect.metric_length(''cosine'', 0.5);';
