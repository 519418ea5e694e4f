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
    category_name text, image_split text, starts timestamptz, "group" text,
    inspected bigint, rejected bigint, reject_rate double precision,
    reject_interval double precision[], mean_score double precision
)
LANGUAGE plpgsql
STABLE
SET search_path = pg_catalog
AS $$
#variable_conflict use_column
BEGIN
    IF (rejects.per IN ('hour', 'day', 'week', 'month', 'all')) IS NOT TRUE THEN
        RAISE EXCEPTION 'per is hour, day, week, month or all, not %',
            coalesce(quote_literal(left(rejects.per, 40)), 'NULL') USING ERRCODE = 'PD400';
    END IF;
    IF (rejects.judged IN ('first', 'last', 'every')) IS NOT TRUE THEN
        RAISE EXCEPTION 'judged is first, last or every, not %',
            coalesce(quote_literal(left(rejects.judged, 40)), 'NULL') USING ERRCODE = 'PD400';
    END IF;
    IF rejects.split IS NOT NULL THEN
        PERFORM pgdefect.check_split(rejects.split);
    END IF;
    IF rejects.category IS NOT NULL
       AND NOT EXISTS (SELECT FROM pgdefect.category c WHERE c.name = rejects.category) THEN
        RAISE EXCEPTION 'there is no category %', quote_literal(left(rejects.category, 100))
            USING ERRCODE = 'PD404', HINT = 'SELECT category FROM defect.categories lists them.';
    END IF;
    RETURN QUERY
    SELECT n.category, n.split, n.starts, n.kind, n.inspected, n.rejected,
           n.rejected::double precision / n.inspected,
           defect.rate_interval(n.rejected, n.inspected), n.mean_score
    FROM (
        SELECT c.name AS category, i.split,
               CASE WHEN rejects.per <> 'all' THEN date_trunc(rejects.per, t.at) END AS starts,
               CASE rejects.by WHEN 'station' THEN s.station
                               WHEN 'detector' THEN s.detector_id::text
                               WHEN 'search' THEN s.search
                               ELSE i.attributes->>rejects.by END AS kind,
               count(*) AS inspected, count(*) FILTER (WHERE s.is_anomalous) AS rejected,
               avg(s.normalized_score) AS mean_score
        FROM (
            SELECT f.image_id, f.station, f.detector_id, f.search, f.is_anomalous,
                   f.normalized_score, f.inspected_at, f.created_at
            FROM pgdefect.inspection f
            WHERE rejects.judged = 'every' OR rejects.judged = 'first' AND f.event = 'inspection'
            UNION ALL
            SELECT f.image_id, s.station, s.detector_id, s.search, s.is_anomalous,
                   s.normalized_score, f.inspected_at, f.created_at
            FROM pgdefect.inspection f
            CROSS JOIN LATERAL (
                SELECT * FROM pgdefect.inspection s WHERE s.image_id = f.image_id
                ORDER BY s.inspected_at DESC, s.created_at DESC, s.id DESC LIMIT 1
            ) s
            WHERE rejects.judged = 'last' AND f.event = 'inspection'
        ) s
        JOIN pgdefect.image i ON i.id = s.image_id
        JOIN pgdefect.category c ON c.id = i.category_id
        CROSS JOIN LATERAL (
            SELECT CASE WHEN rejects.judged = 'every' THEN s.created_at
                        ELSE coalesce(i.taken_at, s.inspected_at) END
        ) t(at)
        WHERE i.retired_at IS NULL AND i.split <> 'simulated'
          AND (rejects.category IS NULL OR c.name = rejects.category)
          AND (rejects.split IS NULL OR i.split = rejects.split)
          AND (rejects.since IS NULL OR t.at >= rejects.since)
          AND (rejects.until IS NULL OR t.at < rejects.until)
        GROUP BY 1, 2, 3, 4
    ) n
    ORDER BY n.category, n.split, n.starts, n.kind;
END
$$;

COMMENT ON FUNCTION defect.rejects IS
'Images inspected and rejected by hour, day, week or month, and by station, detector or any attribute; each image by its first judgement, or by its last or every one. Rates are shares with exact 95 % intervals, mean_score is normalized. Example: SELECT starts, "group", inspected, rejected, reject_rate FROM defect.rejects(per => ''day'', by => ''shift'', category => ''leather'');';
