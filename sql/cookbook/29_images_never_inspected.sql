-- Question: which images were never inspected, or not by the active detector?
-- Answer:   counts for each category and split, with the command that inspects them. Training
--           images are left out: a detector says of what it has learned that it is normal.
SELECT i.category, i.split, count(*) AS images,
       count(*) FILTER (WHERE i.inspection_id IS NULL) AS never,
       count(*) FILTER (WHERE i.inspection_id IS NOT NULL AND s.image_id IS NULL)
           AS only_by_others,
       format('pgdefect inspect --category %s --split %s', i.category, i.split) AS command
FROM defect.images i
JOIN defect.categories c USING (category)
LEFT JOIN (SELECT DISTINCT image_id, detector_id FROM defect.inspections) s
    ON s.image_id = i.image_id AND s.detector_id = c.detector_id
WHERE i.split <> 'train' AND i.retired_at IS NULL
GROUP BY i.category, i.split
ORDER BY i.category, i.split;
