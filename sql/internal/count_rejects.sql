-- The rows of defect.rejects, which says what the arguments are. They have other names here
-- because in PL/pgSQL a column of the result cannot have an argument's name.
CREATE OR REPLACE FUNCTION pgdefect.count_rejects(
    per text,
    divided_by text,
    judged text,
    only_category text,
    only_split text,
    since timestamptz,
    until timestamptz
) RETURNS TABLE (
    category text, split text, starts timestamptz, "group" text,
    inspected bigint, rejected bigint, reject_rate double precision,
    reject_interval double precision[], mean_score double precision
)
LANGUAGE plpgsql
STABLE
SET search_path = pg_catalog
AS $$
#variable_conflict use_column
BEGIN
    IF (count_rejects.per IN ('hour', 'day', 'week', 'month', 'all')) IS NOT TRUE THEN
        RAISE EXCEPTION 'per is hour, day, week, month or all, not %',
            coalesce(quote_literal(left(count_rejects.per, 40)), 'NULL') USING ERRCODE = 'PD400';
    END IF;
    IF (count_rejects.judged IN ('first', 'last', 'every')) IS NOT TRUE THEN
        RAISE EXCEPTION 'judged is first, last or every, not %',
            coalesce(quote_literal(left(count_rejects.judged, 40)), 'NULL') USING ERRCODE = 'PD400';
    END IF;
    IF only_split IS NOT NULL THEN
        PERFORM pgdefect.check_split(only_split);
    END IF;
    IF only_category IS NOT NULL
       AND NOT EXISTS (SELECT FROM pgdefect.category c WHERE c.name = only_category) THEN
        RAISE EXCEPTION 'there is no category %', quote_literal(left(only_category, 100))
            USING ERRCODE = 'PD404', HINT = 'SELECT category FROM defect.categories lists them.';
    END IF;
    RETURN QUERY
    SELECT n.category, n.split, n.starts, n.kind, n.inspected, n.rejected,
           n.rejected::double precision / n.inspected,
           defect.rate_interval(n.rejected, n.inspected), n.mean_score
    FROM (
        SELECT c.name AS category, i.split,
               CASE WHEN count_rejects.per <> 'all' THEN date_trunc(count_rejects.per, t.at) END AS starts,
               CASE divided_by WHEN 'station' THEN s.station
                               WHEN 'detector' THEN s.detector_id::text
                               WHEN 'search' THEN s.search
                               ELSE i.attributes->>divided_by END AS kind,
               count(*) AS inspected, count(*) FILTER (WHERE s.is_anomalous) AS rejected,
               avg(s.normalized_score) AS mean_score
        FROM (
            SELECT f.image_id, f.station, f.detector_id, f.search, f.is_anomalous,
                   f.normalized_score, f.inspected_at, f.created_at
            FROM pgdefect.inspection f
            WHERE count_rejects.judged = 'every' OR count_rejects.judged = 'first' AND f.event = 'inspection'
            UNION ALL
            SELECT f.image_id, s.station, s.detector_id, s.search, s.is_anomalous,
                   s.normalized_score, f.inspected_at, f.created_at
            FROM pgdefect.inspection f
            CROSS JOIN LATERAL (
                SELECT * FROM pgdefect.inspection s WHERE s.image_id = f.image_id
                ORDER BY s.inspected_at DESC, s.created_at DESC, s.id DESC LIMIT 1
            ) s
            WHERE count_rejects.judged = 'last' AND f.event = 'inspection'
        ) s
        JOIN pgdefect.image i ON i.id = s.image_id
        JOIN pgdefect.category c ON c.id = i.category_id
        CROSS JOIN LATERAL (
            SELECT CASE WHEN count_rejects.judged = 'every' THEN s.created_at
                        ELSE coalesce(i.taken_at, s.inspected_at) END
        ) t(at)
        WHERE i.retired_at IS NULL AND i.split <> 'simulated'
          AND (only_category IS NULL OR c.name = only_category)
          AND (only_split IS NULL OR i.split = only_split)
          AND (count_rejects.since IS NULL OR t.at >= count_rejects.since)
          AND (count_rejects.until IS NULL OR t.at < count_rejects.until)
        GROUP BY 1, 2, 3, 4
    ) n
    ORDER BY n.category, n.split, n.starts, n.kind;
END
$$;
COMMENT ON FUNCTION pgdefect.count_rejects IS
'The rows of defect.rejects: images inspected and rejected by time and by station, detector or an attribute. Used by defect.rejects.';
