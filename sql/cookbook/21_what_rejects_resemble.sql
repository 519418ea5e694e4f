-- Question: what are the rejects that were never reviewed most like?
-- Answer:   for each the nearest image of known defect type. A small distance says what it
--           probably is; the large ones at the end are like nothing known: look at those.
-- Set:      how_many (20)
\if :{?how_many} \else \set how_many 20 \endif

SELECT i.image_id, i.path, round(s.distance::numeric, 4) AS distance,
       k.known_defect_type AS like_this_type, k.path AS like_this_image
FROM (SELECT * FROM defect.images
      WHERE verdict = 'anomalous' AND known_label IS NULL AND retired_at IS NULL
      ORDER BY normalized_score DESC LIMIT :how_many) i
LEFT JOIN LATERAL (
    SELECT * FROM defect.similar_images(i.image_id::text, k => 100, category => i.category,
                                        label => 'anomalous') n
    WHERE n.known_defect_type IS NOT NULL ORDER BY n.rank LIMIT 1
) s ON true
LEFT JOIN defect.images k ON k.image_id = s.image_id
ORDER BY s.distance;
