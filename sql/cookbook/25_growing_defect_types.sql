-- Question: which types of defect are growing?
-- Answer:   rejects of each type, known or probable, in the last days against the days before;
--           p is the chance of a difference as large were the type as frequent as before
--           (Fisher's exact test). Under ten images of a type it is large whatever happens.
-- Set:      days (7); the last day is that of the newest photograph
\if :{?days} \else \set days 7 \endif

WITH photographs AS (
    SELECT category, coalesce(taken_at, inspected_at) AS at,
           CASE WHEN verdict = 'anomalous' OR known_label = 'anomalous'
                THEN coalesce(known_defect_type, probable_defect_type, '(unknown)') END AS type
    FROM defect.images
    WHERE split = 'production' AND verdict IS NOT NULL AND retired_at IS NULL
), ends AS (
    SELECT category, max(at) AS newest FROM photographs GROUP BY 1
), halves AS (
    SELECT p.category, p.type, p.at > e.newest - make_interval(days => :days) AS latest
    FROM photographs p
    JOIN ends e USING (category)
    WHERE p.at > e.newest - make_interval(days => 2 * :days)
), totals AS (
    SELECT category, count(*) FILTER (WHERE NOT latest) AS before,
           count(*) FILTER (WHERE latest) AS latest
    FROM halves GROUP BY 1
)
SELECT h.category, h.type, count(*) FILTER (WHERE NOT h.latest) || ' of ' || t.before AS before,
       count(*) FILTER (WHERE h.latest) || ' of ' || t.latest AS latest,
       round((defect.fisher_p(count(*) FILTER (WHERE NOT h.latest), t.before,
                              count(*) FILTER (WHERE h.latest), t.latest))::numeric, 4) AS p
FROM halves h
JOIN totals t USING (category)
WHERE h.type IS NOT NULL
GROUP BY h.category, h.type, t.before, t.latest
ORDER BY h.category, count(*) FILTER (WHERE h.latest) DESC, h.type;
