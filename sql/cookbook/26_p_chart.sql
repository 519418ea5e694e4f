-- Question: is the process in control? The data of an SPC p-chart, with its limits.
-- Answer:   percent is each day's reject rate, center that of all days together, lower and upper
--           the three-sigma limits for as many images as that day had. A day out of them has a
--           cause of its own. Plot it, or add the rule of eight days on one side.
-- Set:      per (day; hour, week, month), category (the one inspected most)
\if :{?per} \else \set per day \endif
\if :{?category} \else
SELECT coalesce((
    SELECT category FROM defect.daily_rejects WHERE split = 'production'
    GROUP BY category ORDER BY sum(inspected) DESC, category LIMIT 1
), '(none)') AS category \gset
\endif

WITH points AS (
    SELECT starts, inspected, rejected,
           sum(rejected) OVER () / sum(inspected) OVER () AS center
    FROM defect.rejects(per => :'per', split => 'production')
    WHERE category = :'category'
), limits AS (
    SELECT p.*, 3 * sqrt(center * (1 - center) / inspected) AS width FROM points p
)
SELECT starts, inspected, rejected, round(100.0 * rejected / inspected, 1) AS percent,
       round(100 * center, 1) AS center,
       round(100 * greatest(0, center - width), 1) AS lower,
       round(100 * least(1, center + width), 1) AS upper,
       CASE WHEN rejected > inspected * (center + width) THEN 'above'
            WHEN rejected < inspected * (center - width) THEN 'below' ELSE '' END AS out
FROM limits
ORDER BY starts;
