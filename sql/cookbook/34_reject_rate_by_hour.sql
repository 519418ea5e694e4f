-- Question: does the time of day matter?
-- Answer:   photographs by the hour they were taken, over all days; the interval is the exact
--           95 % one. Warm-up, daylight and breaks show here.
SELECT category, hour, inspected, rejected, round(100.0 * rejected / inspected, 1) AS percent,
       (SELECT array_agg(round((100 * r)::numeric, 1))
        FROM unnest(defect.rate_interval(rejected, inspected)) r) AS percent_interval
FROM (
    SELECT category, extract(hour FROM starts)::integer AS hour,
           sum(inspected)::bigint AS inspected, sum(rejected)::bigint AS rejected
    FROM defect.rejects(per => 'hour', split => 'production')
    GROUP BY 1, 2
) n
ORDER BY category, hour;
