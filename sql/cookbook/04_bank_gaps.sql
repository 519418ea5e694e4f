-- Question: where does the bank know too little? Which normal images do the good parts that it
--           rejects come nearest to?
-- Answer:   one normal image near to many false rejects marks a gap: parts look almost, but
--           not quite, like it. Put some of those good parts into training.
-- Set:      rejects (images known to be normal that were rejected; by default, where there are
--           none, every normal image in the upper tenth of its category's scores counts)
\if :{?rejects} \else
SELECT CASE WHEN EXISTS (
    SELECT FROM defect.images
    WHERE known_label = 'normal' AND verdict = 'anomalous' AND retired_at IS NULL
) THEN 'rejected' ELSE 'highest' END AS rejects \gset
\endif

WITH suspect AS (
    SELECT i.inspection_id, i.image_id
    FROM (SELECT *, percent_rank() OVER (PARTITION BY category ORDER BY raw_score) AS place
          FROM defect.images
          WHERE known_label = 'normal' AND verdict IS NOT NULL AND retired_at IS NULL) i
    JOIN defect.detectors d USING (detector_id)
    WHERE d.kind = 'patchcore'
      AND CASE :'rejects' WHEN 'rejected' THEN i.verdict = 'anomalous' ELSE i.place >= 0.9 END
)
SELECT n.normal_image_id, n.normal_path, count(DISTINCT s.image_id) AS near_to_images,
       count(*) AS patches, round(max(n.score)::numeric, 4) AS farthest
FROM suspect s
CROSS JOIN LATERAL defect.nearest_normal(s.inspection_id) n
WHERE n.normal_image_id IS NOT NULL
GROUP BY n.normal_image_id, n.normal_path
ORDER BY near_to_images DESC, patches DESC
LIMIT 10;
