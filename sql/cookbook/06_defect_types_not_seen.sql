-- Question: which known defect types has the active bank never been shown?
-- Answer:   whether it finds them is not known. Inspect those images with it (pgdefect inspect),
--           then ask again what it finds.
WITH types AS (
    SELECT i.category, i.known_defect_type, count(*) AS images,
           count(s.image_id) AS shown, max(i.path) AS for_example
    FROM defect.images i
    JOIN defect.categories c ON c.category = i.category
    LEFT JOIN (SELECT DISTINCT image_id, detector_id FROM defect.inspections) s
        ON s.image_id = i.image_id AND s.detector_id = c.detector_id
    WHERE i.known_defect_type IS NOT NULL AND i.retired_at IS NULL
    GROUP BY i.category, i.known_defect_type
)
SELECT category, known_defect_type, images, for_example
FROM types
WHERE shown = 0
ORDER BY images DESC, category, known_defect_type;
