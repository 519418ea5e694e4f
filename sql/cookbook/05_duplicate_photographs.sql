-- Question: which photographs are there twice?
-- Answer:   "same file" has the same sha256; "same picture" was saved anew: its embedding lies
--           within the limit measured for both categories (defect.duplicate_limits says which
--           copies that finds: lossless ones; JPEG of quality 90 and scaled ones where they lie
--           nearer than other parts, found_jpeg_90 and found_resized, and none of them where
--           not). It cannot tell a copy from a second exposure of a part that did not move. Both
--           are looked for across categories. If one of a pair is in training and the other in
--           test, the figures flatter.
-- Set:      distance (instead of the measured limits; 0.0001 where nothing was measured),
--           how_many (200 newest images are looked up)
\if :{?distance} \else \set distance '' \endif
\if :{?how_many} \else \set how_many 200 \endif

WITH limits AS (
    SELECT DISTINCT ON (category) category, max_distance
    FROM defect.duplicate_limits ORDER BY category, kind <> 'patchcore'
)
SELECT 'same file' AS what, 0::double precision AS distance, a.category, a.split, a.path,
       b.category AS other_category, b.split AS other_split, b.path AS other_path
FROM defect.images a
JOIN defect.images b ON b.sha256 = a.sha256 AND b.image_id > a.image_id
UNION ALL
SELECT 'same picture', s.distance, a.category, a.split, a.path, b.category, b.split, b.path
FROM (SELECT * FROM defect.images
      WHERE verdict IS NOT NULL AND retired_at IS NULL ORDER BY image_id DESC LIMIT :how_many) a
CROSS JOIN LATERAL defect.similar_images(
    a.image_id::text, k => 1, by => 'picture', all_categories => true) s
JOIN defect.images b ON b.image_id = s.image_id
LEFT JOIN limits la ON la.category = a.category
LEFT JOIN limits lb ON lb.category = b.category
WHERE s.distance < coalesce(nullif(:'distance', '')::double precision,
                            least(la.max_distance, lb.max_distance), 0.0001)
  AND (b.image_id < a.image_id OR b.verdict IS NULL)
ORDER BY what, category, path;
