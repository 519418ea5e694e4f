-- The anomaly map of an inspection, a row per grid cell.
--
-- score is the cell's patch score: the distance to the nearest normal patch in the bank's
-- metric, or EfficientAD's map value, on the scale of the threshold. Boxes are
-- x,y,width,height in pixels of the photograph.
CREATE OR REPLACE FUNCTION defect.anomaly_map(inspection bigint)
RETURNS TABLE ("row" smallint, col smallint, score real, is_anomalous boolean, box text)
LANGUAGE plpgsql
STABLE PARALLEL SAFE
ROWS 1000
SET search_path = pg_catalog
AS $$
#variable_conflict use_column
DECLARE
    inspected pgdefect.inspection;
    inspected_image pgdefect.image;
    grid record;
BEGIN
    SELECT * INTO inspected FROM pgdefect.inspection s WHERE s.id = inspection;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no inspection %', inspection
            USING ERRCODE = 'PD404', HINT = 'SELECT inspection_id, path FROM defect.images lists the latest.';
    END IF;
    SELECT * INTO inspected_image FROM pgdefect.image i WHERE i.id = inspected.image_id;
    SELECT x.rows, x.cols, x.preprocessing INTO grid FROM pgdefect.extractor x
    JOIN pgdefect.detector d ON d.extractor_id = x.id WHERE d.id = inspected.detector_id;
    -- Unnested, the map is unpacked once and not again for each of its cells.
    RETURN QUERY
        SELECT cell.row::smallint, cell.col::smallint, cell.score, cell.score > inspected.threshold,
               defect.patch_box(cell.row, cell.col, grid.rows, grid.cols, inspected_image.height,
                                inspected_image.width, grid.preprocessing)
        FROM (
            SELECT ((u.n - 1) / array_length(inspected.anomaly_map, 2))::integer AS row,
                   ((u.n - 1) % array_length(inspected.anomaly_map, 2))::integer AS col, u.score
            FROM unnest(inspected.anomaly_map) WITH ORDINALITY u (score, n)
        ) cell
        ORDER BY cell.row, cell.col;
END
$$;

COMMENT ON FUNCTION defect.anomaly_map IS
'The anomaly map of an inspection, one row per grid cell: row and column from 0, patch score (raw, a distance), whether it exceeds the threshold of the inspection, and the cell''s pixels as x,y,width,height. Example: SELECT "row", col, score, box FROM defect.anomaly_map(inspection => 1) ORDER BY score DESC LIMIT 5;';
