-- What an inspected image should have looked like: for each of its anomalous patches the
-- normal patch nearest to it.
--
-- Patches whose score exceeds the inspection's threshold, worst first; if there are none,
-- the worst patch alone. score is the distance to the nearest normal patch in the bank's
-- metric. Boxes are x, y, width, height in pixels of the photograph they lie in. What is said
-- of the normal patch is NULL, but for bank_position, where the bank was imported.
-- Inspections by kinds without a memory bank (EfficientAD) are refused.
CREATE OR REPLACE FUNCTION defect.nearest_normal(inspection bigint)
RETURNS TABLE (
    "row" smallint, col smallint, score real, box text,
    normal_image_id bigint, normal_row smallint, normal_col smallint, normal_box text,
    bank_position integer, normal_path text
)
LANGUAGE plpgsql
STABLE
SET search_path = pg_catalog
AS $$
#variable_conflict use_column
DECLARE
    inspected pgdefect.inspection;
    inspected_image pgdefect.image;
    e pgdefect.extractor;
BEGIN
    SELECT * INTO inspected FROM pgdefect.inspection s WHERE s.id = inspection;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no inspection %', inspection
            USING ERRCODE = 'PD404', HINT = 'SELECT inspection_id, path FROM defect.images lists the latest.';
    END IF;
    IF inspected.nearest_positions IS NULL THEN
        RAISE EXCEPTION 'inspection % was made by %, which has no normal patches to show', inspection, (
            SELECT pgdefect.kind_noun(d.kind) FROM pgdefect.detector d WHERE d.id = inspected.detector_id)
            USING ERRCODE = 'PD404',
                  HINT = 'Inspect the image with the category''s PatchCore detector.';
    END IF;
    SELECT * INTO inspected_image FROM pgdefect.image i WHERE i.id = inspected.image_id;
    SELECT x.* INTO e FROM pgdefect.extractor x
    JOIN pgdefect.detector d ON d.extractor_id = x.id WHERE d.id = inspected.detector_id;
    RETURN QUERY
        SELECT c.row, c.col, c.score,
               defect.patch_box(c.row, c.col, e.rows, e.cols, inspected_image.height,
                                inspected_image.width, e.preprocessing),
               i.id, CASE WHEN i.id IS NOT NULL THEN p.row END,
               CASE WHEN i.id IS NOT NULL THEN p.col END,
               CASE WHEN i.id IS NOT NULL THEN
                   defect.patch_box(p.row, p.col, e.rows, e.cols, i.height, i.width, e.preprocessing)
               END,
               p.position, r.path || '/' || i.path
        FROM (
            SELECT ((u.n - 1) / array_length(inspected.anomaly_map, 2))::smallint AS row,
                   ((u.n - 1) % array_length(inspected.anomaly_map, 2))::smallint AS col,
                   u.score, u.nearest
            FROM unnest(inspected.anomaly_map, inspected.nearest_positions)
                 WITH ORDINALITY u (score, nearest, n)
        ) c
        JOIN pgdefect.memory_bank_patch p
            ON p.bank_id = inspected.detector_id AND p.position = c.nearest
        LEFT JOIN pgdefect.image i ON i.id = p.image_id
        LEFT JOIN pgdefect.image_root r ON r.id = i.root_id
        WHERE c.score > inspected.threshold
           OR (c.row = inspected.worst_row AND c.col = inspected.worst_col)
        ORDER BY c.score DESC, c.row, c.col;
END
$$;

COMMENT ON FUNCTION defect.nearest_normal IS
'For each anomalous patch of an inspection the normal patch nearest to it: image, grid cell, pixel box, distance. Example: SELECT * FROM defect.nearest_normal(inspection => 1);';
