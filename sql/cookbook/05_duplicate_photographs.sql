-- Question: which photographs are there twice?
-- Answer:   "same file" has the same sha256; "same picture" was saved anew without loss: its
--           embedding is within the distance; both across categories. A picture saved as JPEG
--           is not found: at quality 90 it lies 0.007 from itself and different parts lie 0.002
--           apart, so that no distance tells the two. If one of a pair is in training and the
--           other in test, the figures flatter.
-- Set:      distance (0.0001), how_many (200 newest images are looked up)
\if :{?distance} \else \set distance 0.0001 \endif
\if :{?how_many} \else \set how_many 200 \endif

SELECT 'same file' AS what, 0::double precision AS distance, a.category, a.split, a.path,
       b.split AS other_split, b.path AS other_path
FROM defect.images a
JOIN defect.images b ON b.sha256 = a.sha256 AND b.image_id > a.image_id
UNION ALL
SELECT 'same picture', s.distance, a.category, a.split, a.path, b.split, b.path
FROM (SELECT * FROM defect.images
      WHERE verdict IS NOT NULL AND retired_at IS NULL ORDER BY image_id DESC LIMIT :how_many) a
CROSS JOIN LATERAL defect.similar_images(
    a.image_id::text, k => 1, by => 'picture', all_categories => true) s
JOIN defect.images b ON b.image_id = s.image_id
WHERE s.distance < :distance AND (b.image_id < a.image_id OR b.verdict IS NULL)
ORDER BY what, category, path;
