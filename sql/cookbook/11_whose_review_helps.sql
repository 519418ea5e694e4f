-- Question: an inspector has ten minutes: which images should she look at?
-- Answer:   the first first. What she finds goes in with
--           SELECT defect.review('IMAGE_ID', label => 'anomalous', defect_type => 'scratch');
-- Set:      how_many (10)
\if :{?how_many} \else \set how_many 10 \endif

SELECT image_id, round(priority::numeric, 2) AS priority, reason, verdict,
       round(normalized_score::numeric, 3) AS score, coalesce(known_label, 'unknown') AS known,
       probable_defect_type, path
FROM defect.review_queue
ORDER BY priority DESC
LIMIT :how_many;
