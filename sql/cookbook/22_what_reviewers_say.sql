-- Question: how often do people and detector agree?
-- Answer:   a line per reviewer, of reviews in force: agreements, defects the detector had let
--           through, and good parts it had rejected.
SELECT r.category, r.reviewer, count(*) AS reviews,
       count(*) FILTER (WHERE r.label = i.verdict) AS agree,
       count(*) FILTER (WHERE r.label = 'anomalous' AND i.verdict = 'normal') AS escapes,
       count(*) FILTER (WHERE r.label = 'normal' AND i.verdict = 'anomalous') AS false_rejects,
       count(*) FILTER (WHERE i.verdict IS NULL) AS not_inspected
FROM defect.reviews r
JOIN defect.images i USING (image_id)
WHERE r.in_force
GROUP BY r.category, r.reviewer
ORDER BY r.category, reviews DESC;
