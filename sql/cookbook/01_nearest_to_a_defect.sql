-- Question: which stored photographs are the ten most like this defect?
-- Answer:   nearest first. A distance of 0 is the same picture; several neighbors of one
--           defect type are a good hint at what it is. None shows the same part.
-- Set:      image (an id, the end of a path or the start of a sha256; the surest reject), k
\if :{?k} \else \set k 10 \endif
\if :{?image} \else
SELECT coalesce((
    SELECT image_id::text FROM defect.images
    WHERE verdict = 'anomalous' ORDER BY normalized_score DESC, image_id LIMIT 1
), '(a reject)') AS image \gset
\endif

SELECT s.rank, round(s.distance::numeric, 4) AS distance, i.category, i.known_label,
       i.known_defect_type, i.path
FROM defect.similar_images(:'image', k => :k, exclude_part => true) s
JOIN defect.images i USING (image_id)
ORDER BY s.rank;
