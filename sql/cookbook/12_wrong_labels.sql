-- Question: which labels are probably wrong?
-- Answer:   images whose verdict is far from their label, the farthest first. A normal one with
--           a high score may be a defect that was overlooked; look at its box.
-- Set:      how_many (10)
\if :{?how_many} \else \set how_many 10 \endif

SELECT i.image_id, i.known_label, i.verdict, round(i.normalized_score::numeric, 3) AS score,
       s.worst_box AS look_at, i.reviewer, i.path
FROM defect.images i
JOIN defect.inspections s USING (inspection_id)
WHERE i.known_label <> i.verdict AND i.retired_at IS NULL
ORDER BY abs(i.normalized_score - 0.5) DESC
LIMIT :how_many;
