-- Where a grid cell lies in the photograph: 'x,y,width,height' in its pixels.
--
-- preprocessing, grid_rows and grid_cols are the extractor's. Where it keeps the aspect ratio
-- ("resize": "keep"), that is the grid of an image shaped like image_size; this image's own
-- follows from its height and width. Whole numbers, halves up, at least one pixel each way.
-- NULL where an argument is, and for a cell outside the grid.
--
-- Same rule in Python:
--   pgdefect.vision.images.preprocess.Preprocessing.input_size_of
--   pgdefect.vision.images.preprocess.Preprocessing.grid_to_pixels
--   pgdefect.vision.networks.extractor.Extractor.grid_of
CREATE OR REPLACE FUNCTION defect.patch_box(
    "row" integer, col integer, grid_rows integer, grid_cols integer,
    height integer, width integer, preprocessing jsonb
) RETURNS text
LANGUAGE plpgsql
IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog
AS $$
DECLARE
    -- What products of four stay below 2 ^ 63 for.
    largest CONSTANT integer := 16384;
    image_size CONSTANT jsonb := preprocessing->'image_size';
    center_crop CONSTANT jsonb := nullif(preprocessing->'center_crop', 'null');
    size_y bigint;
    size_x bigint;
    crop_y bigint;
    crop_x bigint;
    rows bigint := grid_rows;
    cols bigint := grid_cols;
    scale double precision;
    x bigint;
    y bigint;
BEGIN
    IF grid_rows NOT BETWEEN 1 AND largest OR grid_cols NOT BETWEEN 1 AND largest
       OR height < 1 OR width < 1 THEN
        RAISE EXCEPTION 'a grid of % x % over an image of % x % has no boxes', grid_rows, grid_cols, height, width
            USING ERRCODE = 'PD400', HINT = 'SELECT rows, cols FROM pgdefect.extractor has the grid of an extractor.';
    ELSIF (jsonb_typeof(image_size->0) = 'number' AND jsonb_typeof(image_size->1) = 'number'
           AND (image_size->0)::numeric BETWEEN 1 AND largest AND (image_size->1)::numeric BETWEEN 1 AND largest
           AND (center_crop IS NULL
                OR jsonb_typeof(center_crop->0) = 'number' AND jsonb_typeof(center_crop->1) = 'number'
                AND (center_crop->0)::numeric BETWEEN 1 AND (image_size->0)::numeric
                AND (center_crop->1)::numeric BETWEEN 1 AND (image_size->1)::numeric)) IS NOT TRUE THEN
        RAISE EXCEPTION 'preprocessing has no image_size [height, width] that fits: %', preprocessing
            USING ERRCODE = 'PD400', HINT = 'SELECT preprocessing FROM pgdefect.extractor has that of an extractor.';
    END IF;
    size_y := (image_size->0)::bigint;
    size_x := (image_size->1)::bigint;
    crop_y := coalesce((center_crop->0)::bigint, size_y);
    crop_x := coalesce((center_crop->1)::bigint, size_x);
    IF preprocessing->>'resize' = 'keep' THEN
        scale := sqrt(size_y::double precision * size_x / (height::double precision * width)) / 16;
        rows := rows * least(greatest(floor(height * scale + 0.5), 4), 256)::bigint
                / least(greatest(floor(size_y / 16.0::double precision + 0.5), 4), 256)::bigint;
        cols := cols * least(greatest(floor(width * scale + 0.5), 4), 256)::bigint
                / least(greatest(floor(size_x / 16.0::double precision + 0.5), 4), 256)::bigint;
    END IF;
    IF "row" < 0 OR "row" >= rows OR col < 0 OR col >= cols THEN
        RETURN NULL;
    END IF;
    y := least((2 * ((size_y - crop_y) / 2 * rows + "row" * crop_y) * height + rows * size_y)
               / (2 * rows * size_y), height - 1);
    x := least((2 * ((size_x - crop_x) / 2 * cols + col * crop_x) * width + cols * size_x)
               / (2 * cols * size_x), width - 1);
    RETURN x || ',' || y || ','
        || greatest((2 * ((size_x - crop_x) / 2 * cols + (col + 1) * crop_x) * width + cols * size_x)
                    / (2 * cols * size_x) - x, 1)
        || ',' || greatest((2 * ((size_y - crop_y) / 2 * rows + ("row" + 1) * crop_y) * height + rows * size_y)
                           / (2 * rows * size_y) - y, 1);
END
$$;

COMMENT ON FUNCTION defect.patch_box IS
'The pixel box (x,y,width,height) of a grid cell in a photograph of the given size under an extractor''s grid and preprocessing. Example: SELECT defect.patch_box("row" => 3, col => 5, grid_rows => 16, grid_cols => 16, height => 1024, width => 768, preprocessing => ''{"image_size": [256, 256], "resize": "keep"}'');';
