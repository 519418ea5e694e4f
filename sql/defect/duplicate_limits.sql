-- How near two embeddings of one photograph lie, saved anew or not, and what the limit between
-- such copies and other photographs tells apart: measured on the category's own images by
-- training and by `pgdefect embed`; of active detectors.
--
-- The share of copies that the limit finds: found_lossless (PNG, TIFF), found_jpeg_90 (JPEG of
-- quality 90), found_resized (half the size and back); mistaken is the share of images that have
-- another photograph within the limit. Where JPEG copies lie farther than other parts no distance
-- finds them, and found_jpeg_90 is 0.
CREATE OR REPLACE VIEW defect.duplicate_limits AS
SELECT c.name AS category, d.id AS detector_id, d.extractor_id,
       pgdefect.json_number(m.said, 'limit') AS max_distance,
       pgdefect.json_number(m.said, 'nearest_other') AS nearest_other,
       pgdefect.json_number(m.said->'copies', 'jpeg_90') AS jpeg_90_distance,
       pgdefect.json_number(m.said->'copies', 'resized') AS resized_distance,
       pgdefect.json_number(m.said->'found', 'lossless') AS found_lossless,
       pgdefect.json_number(m.said->'found', 'jpeg_90') AS found_jpeg_90,
       pgdefect.json_number(m.said->'found', 'resized') AS found_resized,
       pgdefect.json_number(m.said, 'mistaken') AS mistaken,
       pgdefect.json_number(m.said, 'num_images')::integer AS num_images, d.kind
FROM pgdefect.detector d
JOIN pgdefect.category c ON c.id = d.category_id
CROSS JOIN LATERAL (SELECT d.metrics->'near_duplicates' AS said) m
WHERE d.active;

COMMENT ON VIEW defect.duplicate_limits IS
'Up to which cosine distance two images are taken for one photograph, by category and active detector: measured by training and pgdefect embed on copies of the category''s images; NULL where it was not. found_ columns are the shares of copies saved without loss, as JPEG of quality 90, at half size that the limit finds, mistaken that of images with another photograph within it. Example: SELECT category, max_distance, nearest_other, jpeg_90_distance, found_jpeg_90, mistaken FROM defect.duplicate_limits ORDER BY category, kind;';
