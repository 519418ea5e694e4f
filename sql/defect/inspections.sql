-- Every inspection, newest detector or not, with its image; none of simulated defects.
CREATE OR REPLACE VIEW defect.inspections AS
SELECT s.id AS inspection_id, c.name AS category, s.image_id, s.detector_id, d.version,
       CASE WHEN s.is_anomalous THEN 'anomalous' ELSE 'normal' END AS verdict,
       i.label, i.defect_type, s.raw_score, s.normalized_score, s.threshold,
       s.worst_row, s.worst_col,
       defect.patch_box(s.worst_row, s.worst_col, e.rows, e.cols, i.height, i.width,
                        e.preprocessing) AS worst_box,
       s.search, r.path || '/' || i.path AS path, s.created_at, d.kind,
       i.known_label, i.known_defect_type, s.vote, s.probable_defect_type
FROM pgdefect.inspection s
JOIN pgdefect.image i ON i.id = s.image_id
JOIN pgdefect.image_root r ON r.id = i.root_id
JOIN pgdefect.category c ON c.id = i.category_id
JOIN pgdefect.detector d ON d.id = s.detector_id
JOIN pgdefect.extractor e ON e.id = d.extractor_id
WHERE i.split <> 'simulated';

COMMENT ON VIEW defect.inspections IS
'What each detector said of each image, under the threshold in force then; worst_box is x,y,width,height in pixels; kind is patchcore or efficient_ad; vote counts the defect types among the k most similar stored images, probable_defect_type is the one with enough of them. Example: SELECT category, verdict, count(*) FROM defect.inspections GROUP BY 1, 2 ORDER BY 1, 2;';
