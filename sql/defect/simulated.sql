-- Every image with a simulated defect: how it was made, and what the newest inspection said.
CREATE OR REPLACE VIEW defect.simulated AS
SELECT i.id AS image_id, c.name AS category,
       i.simulation->>'kind' AS kind, i.simulation->>'size' AS size,
       i.simulation->>'contrast' AS contrast,
       pgdefect.json_number(i.simulation, 'area') AS area,
       coalesce(pgdefect.json_number(i.simulation, 'gray_difference'),
                pgdefect.json_number(i.simulation, 'grey_difference')) AS grey_difference,
       CASE WHEN s.is_anomalous THEN 'anomalous' WHEN NOT s.is_anomalous THEN 'normal' END AS verdict,
       s.raw_score, s.normalized_score, s.threshold,
       s.id AS inspection_id, s.detector_id, s.inspected_at,
       r.path || '/' || i.path AS path, r.path || '/' || i.mask_path AS mask_path,
       pgdefect.json_integer(i.simulation, 'seed') AS seed,
       pgdefect.json_integer(i.simulation, 'source_image_id') AS source_image_id,
       i.group_name, i.height, i.width, i.created_at, i.retired_at, i.group_name AS part,
       coalesce(pgdefect.json_number(i.simulation, 'gray_difference'),
                pgdefect.json_number(i.simulation, 'grey_difference')) AS gray_difference
FROM pgdefect.image i
JOIN pgdefect.category c ON c.id = i.category_id
JOIN pgdefect.image_root r ON r.id = i.root_id
LEFT JOIN LATERAL (
    SELECT * FROM pgdefect.inspection s WHERE s.image_id = i.id
    ORDER BY s.inspected_at DESC, s.created_at DESC, s.id DESC LIMIT 1
) s ON true
WHERE i.split = 'simulated';

COMMENT ON VIEW defect.simulated IS
'Every image with a simulated defect and its newest verdict. area is the defect''s share of the image, gray_difference its mean absolute difference in gray levels (0 to 255). Example: SELECT kind, size, avg((verdict = ''anomalous'')::int) AS detection_rate FROM defect.simulated GROUP BY 1, 2 ORDER BY 1, 2;';
