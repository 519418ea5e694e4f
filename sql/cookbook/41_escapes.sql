-- Question: which defects does the detector let through?
-- Answer:   images that are known to be anomalous and whose verdict in force is normal, the
--           furthest below the threshold first. missing is by how much the score fell short: a
--           small one needs a lower threshold, a large one another detector.
-- Set:      n (20)
\if :{?n} \else \set n 20 \endif

SELECT category, split, known_defect_type AS type, round(normalized_score::numeric, 3) AS score,
       round((100 * (1 - raw_score / threshold))::numeric, 1) AS missing_percent,
       count(*) OVER (PARTITION BY category, known_defect_type) AS of_this_type, path
FROM defect.images
WHERE known_label = 'anomalous' AND verdict = 'normal' AND retired_at IS NULL
ORDER BY normalized_score, path
LIMIT :n;
