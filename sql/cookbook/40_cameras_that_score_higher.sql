-- Question: does one camera score higher than the others on the same parts?
-- Answer:   parts photographed by several cameras: the mean score of each camera, its difference
--           from the part's mean, and t, that difference in standard errors. Beyond 3 either way
--           look at light and focus, before the threshold.
-- Set:      attribute (camera)
\if :{?attribute} \else \set attribute camera \endif

WITH scored AS (
    SELECT category, part, attributes->>:'attribute' AS value, normalized_score
    FROM defect.images
    WHERE split = 'production' AND verdict IS NOT NULL AND part IS NOT NULL
      AND attributes->>:'attribute' IS NOT NULL AND retired_at IS NULL
), compared AS (
    SELECT s.*, normalized_score - avg(normalized_score) OVER p AS difference,
           min(value) OVER p <> max(value) OVER p AS several
    FROM scored s
    WINDOW p AS (PARTITION BY category, part)
)
SELECT category, value AS :"attribute", count(*) AS photographs,
       round(avg(normalized_score)::numeric, 3) AS mean_score,
       round(avg(difference)::numeric, 3) AS difference,
       round((avg(difference) / nullif(stddev(difference) / sqrt(count(*)), 0))::numeric, 1) AS t
FROM compared
WHERE several
GROUP BY 1, 2
ORDER BY category, difference DESC;
