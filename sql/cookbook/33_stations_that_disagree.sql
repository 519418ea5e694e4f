-- Question: which stations disagree about the same photographs?
-- Answer:   photographs that two stations have both inspected, by the last look of each: how
--           often they disagree, and kappa: agreement beyond chance (1 is full, 0 is none more
--           than chance; empty where both always say the same).
WITH looks AS (
    SELECT DISTINCT ON (image_id, station) category, image_id, station, verdict
    FROM defect.inspections
    WHERE station IS NOT NULL AND event <> 're-judgement'
    ORDER BY image_id, station, inspected_at DESC, inspection_id DESC
), pairs AS (
    SELECT a.category, a.station AS one, b.station AS other, count(*) AS images,
           count(*) FILTER (WHERE a.verdict <> b.verdict) AS disagree,
           avg((a.verdict = 'anomalous')::int) AS p, avg((b.verdict = 'anomalous')::int) AS q
    FROM looks a
    JOIN looks b ON b.image_id = a.image_id AND b.station > a.station
    GROUP BY 1, 2, 3
)
SELECT category, one, other, images, disagree,
       round(100 * p, 1) AS percent_one, round(100 * q, 1) AS percent_other,
       round(1 - (disagree::numeric / images) / nullif(p * (1 - q) + q * (1 - p), 0), 2) AS kappa
FROM pairs
ORDER BY disagree DESC, category, one, other;
