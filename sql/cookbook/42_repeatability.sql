-- Question: how repeatable is the measurement itself?
-- Answer:   photographs that one detector has looked at more than once: the standard deviation
--           of their raw scores about their own means (repeatability), beside that between
--           photographs. A share above some percent is not the parts'. The search explains most
--           of it: hnsw and fast find nearly the nearest vectors, exact the nearest.
WITH looks AS (
    SELECT category, detector_id, image_id, raw_score, search
    FROM defect.inspections
    WHERE event <> 're-judgement'
), of_image AS (
    SELECT category, detector_id, image_id, count(*) AS n, avg(raw_score) AS mean,
           var_pop(raw_score) * count(*) AS squares,
           string_agg(DISTINCT search, ', ' ORDER BY search) AS searches
    FROM looks
    GROUP BY 1, 2, 3
)
SELECT category, detector_id, count(*) FILTER (WHERE n > 1) AS repeated,
       round(sqrt(sum(squares) / nullif(sum(n - 1), 0))::numeric, 6) AS repeatability,
       round(stddev(mean)::numeric, 4) AS between_photographs,
       round((100 * sqrt(sum(squares) / nullif(sum(n - 1), 0)) / nullif(stddev(mean), 0))::numeric, 2)
           AS share_percent,
       string_agg(DISTINCT searches, '; ' ORDER BY searches) FILTER (WHERE n > 1) AS searches
FROM of_image
GROUP BY 1, 2
ORDER BY 1, 2;
