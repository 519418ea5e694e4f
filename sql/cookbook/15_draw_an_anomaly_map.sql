-- Question: what does the anomaly map of this image look like?
-- Answer:   a character a grid cell: @ above the threshold, then # + - . down to the lowest.
--           defect.anomaly_map gives the numbers and each cell's pixels.
-- Set:      image (the surest reject)
\if :{?image} \else
SELECT coalesce((
    SELECT image_id::text FROM defect.images
    WHERE verdict = 'anomalous' ORDER BY normalized_score DESC, image_id LIMIT 1
), '(a reject)') AS image \gset
\endif

SELECT string_agg(
           CASE WHEN m.is_anomalous THEN '@'
                ELSE (ARRAY['.', '-', '+', '#'])[least(4, 1 + floor(4 * m.score / i.threshold))::integer]
           END, ' ' ORDER BY m.col) AS map
FROM defect.images i
CROSS JOIN LATERAL defect.anomaly_map(i.inspection_id) m
WHERE i.image_id = defect.find_image(:'image')
GROUP BY m."row"
ORDER BY m."row";
