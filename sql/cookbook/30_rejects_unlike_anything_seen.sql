-- Question: which rejects are unlike anything seen before?
-- Answer:   novelty is the distance (0 to 1) from the reject's defect embedding to the nearest
--           image of known defect type. High: a new kind of defect, or no defect at all (a
--           fiber, a wrong product, a reflection). Review these first.
-- Set:      n (10)
\if :{?n} \else \set n 10 \endif

SELECT category, image_id, round(novelty::numeric, 3) AS novelty,
       round(normalized_score::numeric, 3) AS score, probable_defect_type AS probably, path
FROM defect.review_queue
WHERE verdict = 'anomalous' AND novelty IS NOT NULL
ORDER BY novelty DESC, image_id
LIMIT :n;
