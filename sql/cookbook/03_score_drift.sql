-- Question: have the scores drifted, this week against the one before?
-- Answer:   shift is the difference of the two means in standard deviations of last week's
--           scores. Above about 0.5, look at light, focus and lens before trusting the rejects;
--           if parts are fine, train a new bank with this week's good ones.
-- Set:      days (7); the last week ends with the newest photograph
\if :{?days} \else \set days 7 \endif

WITH weeks AS (
    SELECT category, normalized_score,
           at > max(at) OVER (PARTITION BY category) - make_interval(days => :days) AS latest
    FROM (
        SELECT category, normalized_score, coalesce(taken_at, inspected_at) AS at,
               max(coalesce(taken_at, inspected_at)) OVER () AS newest
        FROM defect.images
        WHERE split = 'production' AND verdict IS NOT NULL
    ) i
    WHERE at > newest - make_interval(days => 2 * :days)
)
SELECT category, count(*) FILTER (WHERE NOT latest) AS before,
       count(*) FILTER (WHERE latest) AS latest,
       round(avg(normalized_score) FILTER (WHERE NOT latest)::numeric, 3) AS mean_before,
       round(avg(normalized_score) FILTER (WHERE latest)::numeric, 3) AS mean_latest,
       round(((avg(normalized_score) FILTER (WHERE latest)
               - avg(normalized_score) FILTER (WHERE NOT latest))
              / nullif(stddev(normalized_score) FILTER (WHERE NOT latest), 0))::numeric, 2) AS shift
FROM weeks
GROUP BY category
ORDER BY category;
