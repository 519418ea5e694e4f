-- Question: how many verdicts hang by a thread?
-- Answer:   production images whose score lies within a few percent of the threshold: what a
--           little more light would turn. Compare stations or cameras by it.
-- Set:      percent (10), attribute (camera)
\if :{?percent} \else \set percent 10 \endif
\if :{?attribute} \else \set attribute camera \endif

SELECT category, coalesce(attributes->>:'attribute', '(none)') AS :"attribute",
       count(*) AS inspected,
       count(*) FILTER (WHERE near AND verdict = 'anomalous') AS just_rejected,
       count(*) FILTER (WHERE near AND verdict = 'normal') AS just_passed,
       round(100.0 * count(*) FILTER (WHERE near) / count(*), 1) AS percent_near
FROM (
    SELECT i.*, abs(raw_score / threshold - 1) <= :percent / 100.0 AS near
    FROM defect.images i
    WHERE split = 'production' AND verdict IS NOT NULL AND retired_at IS NULL
) n
GROUP BY 1, 2
ORDER BY category, percent_near DESC, 2;
