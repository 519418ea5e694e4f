-- Question: how many rejects were good parts after all, and at which scores?
-- Answer:   reviewed rejects by tenths of the normalized score (0.5 is the threshold): the share
--           that the reviewer called normal, with its exact 95 % interval. Where most of a tenth
--           is overturned, the threshold can rise by it.
SELECT category, stratum / 10.0 AS score_from, reviewed, overturned,
       round(100.0 * overturned / reviewed, 1) AS percent,
       (SELECT array_agg(round((100 * r)::numeric, 1))
        FROM unnest(defect.rate_interval(overturned, reviewed)) r) AS percent_interval
FROM (
    SELECT category, least(floor(10 * normalized_score), 9)::integer AS stratum,
           count(*) AS reviewed, count(*) FILTER (WHERE reviewed_label = 'normal') AS overturned
    FROM defect.images
    WHERE verdict = 'anomalous' AND reviewed_label IS NOT NULL AND retired_at IS NULL
    GROUP BY 1, 2
) n
ORDER BY category, stratum;
