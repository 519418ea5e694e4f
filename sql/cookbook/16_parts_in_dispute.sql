-- Question: which parts were judged differently from one photograph to the next?
-- Answer:   a part (group) with both verdicts: a defect that only one exposure shows, or a
--           threshold that lies in the noise of taking pictures (spread: highest less lowest
--           normalized score).
SELECT category, part, count(*) AS photographs,
       count(*) FILTER (WHERE verdict = 'anomalous') AS rejected,
       round((max(normalized_score) - min(normalized_score))::numeric, 3) AS spread
FROM defect.images
WHERE part IS NOT NULL AND verdict IS NOT NULL AND retired_at IS NULL
GROUP BY category, part
HAVING count(DISTINCT verdict) > 1
ORDER BY spread DESC;
