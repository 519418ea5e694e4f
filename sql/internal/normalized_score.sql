-- A raw score on the scale shared by all detectors: 0.25 at the center, 0.5 at the threshold.
--
-- Agrees with Python to the last bit.
--
-- Same rule in Python:
--   pgdefect.vision.patchcore.scoring.normalized_score
CREATE OR REPLACE FUNCTION pgdefect.normalized_score(
    raw double precision, threshold double precision, center double precision
) RETURNS double precision
LANGUAGE sql
IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog
AS $$
    SELECT CASE
        WHEN raw < threshold THEN
            0.5::double precision * (threshold - center) / (threshold - center + (threshold - raw))
        ELSE
            -- The largest number below 1: it is never reached.
            least(1 - 0.5::double precision * (threshold - center) / (threshold - center + (raw - threshold)),
                  0.99999999999999988898::double precision)
        END
$$;

COMMENT ON FUNCTION pgdefect.normalized_score IS
'A raw score as a number between 0 and 1: rising, 0.5 at the threshold, 0.25 at the center. Used when stored scores are judged again.';
