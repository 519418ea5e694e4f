-- Question: how has the reject rate gone, day by day?
-- Answer:   the bar is the rate, = from its lower to its upper 95 % limit. A day whose bar has
--           nothing in common with the others' was different.
-- Set:      category (the one inspected most), days (14)
\if :{?days} \else \set days 14 \endif
\if :{?category} \else
SELECT coalesce((
    SELECT category FROM defect.daily_rejects GROUP BY category
    ORDER BY sum(inspected) DESC, category LIMIT 1
), '(none)') AS category \gset
\endif

SELECT day, sum(inspected) AS inspected, sum(rejected) AS rejected,
       round(100 * sum(rejected) / sum(inspected), 1) AS percent,
       repeat(' ', floor(40 * i[1])::integer)
           || repeat('=', greatest(1, round(40 * (i[2] - i[1]))::integer)) AS "0 % to 100 %"
FROM (
    SELECT d.*, defect.rate_interval((sum(rejected) OVER (PARTITION BY day))::bigint,
                                     (sum(inspected) OVER (PARTITION BY day))::bigint) AS i
    FROM defect.daily_rejects d
    WHERE category = :'category'
) d
GROUP BY day, i
ORDER BY day DESC
LIMIT :days;
