-- How many images were rejected, over time and by station, detector or any attribute.
--
-- per        hour, day, week, month, or all for no division by time; in the session's time zone
-- by         station, detector, search, or an attribute of the images (shift, line, camera)
-- judged     first: each image by its first judgement, which nothing changes later
--            last: each image by the verdict in force now
--            every: each inspection, re-inspection and re-judgement, at the time it was made
-- category, split, since, until: only those; since is included, until is not
--
-- An image's time is when it was photographed (taken_at), else when it was first inspected.
-- Retired images and simulated defects are left out.
CREATE OR REPLACE FUNCTION defect.rejects(
    per text DEFAULT 'day',
    "by" text DEFAULT NULL,
    judged text DEFAULT 'first',
    category text DEFAULT NULL,
    split text DEFAULT NULL,
    since timestamptz DEFAULT NULL,
    until timestamptz DEFAULT NULL
) RETURNS TABLE (
    category text, split text, starts timestamptz, "group" text,
    inspected bigint, rejected bigint, reject_rate double precision,
    reject_interval double precision[], mean_score double precision
)
LANGUAGE sql
STABLE
SET search_path = pg_catalog
AS $$
    SELECT * FROM pgdefect.count_rejects(per, "by", judged, category, split, since, until)
$$;

COMMENT ON FUNCTION defect.rejects IS
'Images inspected and rejected by hour, day, week or month, and by station, detector or any attribute; each image by its first judgement, or by its last or every one. Rates are shares with exact 95 % intervals, mean_score is normalized. Example: SELECT starts, "group", inspected, rejected, reject_rate FROM defect.rejects(per => ''day'', by => ''shift'', category => ''leather'');';
