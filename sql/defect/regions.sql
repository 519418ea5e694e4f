-- Every anomalous region of an inspected image, as the newest detector saw it.
--
-- Regions are connected grid cells above the detector's threshold for patches. What they
-- resemble: defect.similar_regions(region_id).
CREATE OR REPLACE VIEW defect.regions AS
SELECT g.id AS region_id, c.name AS category, g.image_id, r.path || '/' || i.path AS path,
       g.rank, g.x, g.y, g.width, g.height,
       format('%s,%s,%s,%s', g.x, g.y, g.width, g.height) AS box,
       g.area, g.num_patches, g.peak_score, g.mean_score,
       i.known_label, i.known_defect_type, i.group_name, i.split,
       g.detector_id, d.version, d.kind, g.extractor_id, i.group_name AS part
FROM pgdefect.defect_region g
JOIN pgdefect.image i ON i.id = g.image_id
JOIN pgdefect.image_root r ON r.id = i.root_id
JOIN pgdefect.category c ON c.id = i.category_id
JOIN pgdefect.detector d ON d.id = g.detector_id
WHERE i.split <> 'simulated';

COMMENT ON VIEW defect.regions IS
'Every anomalous region of an image: its box in pixels, its area as a share of the image, its patch scores (raw, distances), worst first by rank within an image. Example: SELECT path, box, area, peak_score FROM defect.regions WHERE category = ''leather'' ORDER BY peak_score DESC LIMIT 10;';
