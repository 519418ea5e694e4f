-- Question: what has changed since the last detector?
-- Answer:   images that the active detector and the one before it have both judged, by the
--           newest inspection of each: how many each rejects, how many verdicts went which way,
--           and p: the chance of so one-sided a change were it only noise (McNemar's test).
WITH pairs AS (
    SELECT c.category, c.detector_id AS active,
           (SELECT max(d.detector_id) FROM defect.detectors d
            WHERE d.category = c.category AND d.detector_id < c.detector_id) AS before
    FROM defect.categories c
), judged AS (
    SELECT DISTINCT ON (s.detector_id, s.image_id) s.category, s.detector_id, s.image_id, s.verdict
    FROM defect.inspections s
    JOIN pairs p ON s.detector_id IN (p.active, p.before)
    ORDER BY s.detector_id, s.image_id, s.inspected_at DESC, s.judged_at DESC, s.inspection_id DESC
), both_judged AS (
    SELECT p.category, p.before, p.active, b.verdict AS old, a.verdict AS new
    FROM pairs p
    JOIN judged a ON a.detector_id = p.active
    JOIN judged b ON b.detector_id = p.before AND b.image_id = a.image_id
), counted AS (
    SELECT category, before, active, count(*) AS images,
           count(*) FILTER (WHERE old = 'anomalous') AS rejected_before,
           count(*) FILTER (WHERE new = 'anomalous') AS rejected_now,
           count(*) FILTER (WHERE old = 'normal' AND new = 'anomalous') AS newly_rejected,
           count(*) FILTER (WHERE old = 'anomalous' AND new = 'normal') AS no_longer
    FROM both_judged
    GROUP BY 1, 2, 3
)
SELECT c.*, round(least(1, 2 * (
    -- Exact: changes fall on either side as coins do.
    SELECT sum(exp(lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1) - n * ln(2)))
    FROM (SELECT (newly_rejected + no_longer)::double precision AS n) t,
         generate_series(0, least(newly_rejected, no_longer)) k
))::numeric, 4) AS p
FROM counted c
ORDER BY category;
