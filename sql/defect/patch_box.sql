-- Where a grid cell lies in the photograph: 'x,y,width,height' in its pixels.
--
-- preprocessing, grid_rows and grid_cols are the extractor's. Where it keeps the aspect ratio
-- ("resize": "keep"), that is the grid of an image shaped like image_size; this image's own
-- follows from its height and width. Whole numbers, halves up, at least one pixel each way.
--
-- Same rule in Python:
--   pgdefect.vision.images.preprocess.Preprocessing.input_size_of
--   pgdefect.vision.images.preprocess.Preprocessing.grid_to_pixels
--   pgdefect.vision.networks.extractor.Extractor.grid_of
CREATE OR REPLACE FUNCTION defect.patch_box(
    "row" integer, col integer, grid_rows integer, grid_cols integer,
    height integer, width integer, preprocessing jsonb
) RETURNS text
LANGUAGE sql
IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog
AS $$
    SELECT format('%s,%s,%s,%s', min(first) FILTER (WHERE axis = 1), min(first) FILTER (WHERE axis = 0),
                  min(extent) FILTER (WHERE axis = 1), min(extent) FILTER (WHERE axis = 0))
    FROM (
        SELECT axis, least(border, length - 1) AS first,
               greatest(next_border - least(border, length - 1), 1) AS extent
        FROM (
            SELECT axis, length,
                   (2 * (edge * cells + cell * crop) * length + cells * size) / (2 * cells * size) AS border,
                   (2 * (edge * cells + (cell + 1) * crop) * length + cells * size) / (2 * cells * size) AS next_border
            FROM (
                SELECT axis, cell, length, size, crop, (size - crop) / 2 AS edge,
                       CASE preprocessing->>'resize' WHEN 'keep' THEN
                           grid * least(greatest(floor(length * scale + 0.5), 4), 256)::bigint
                           / least(greatest(floor(size / 16.0 + 0.5), 4), 256)::bigint
                       ELSE grid END AS cells
                FROM (
                    SELECT sqrt((preprocessing->'image_size'->>0)::double precision
                                * (preprocessing->'image_size'->>1)::double precision
                                / (height::double precision * width)) / 16 AS scale
                ) kept
                CROSS JOIN LATERAL (
                    SELECT axis, cell::bigint, grid::bigint, length::bigint,
                           (preprocessing->'image_size'->>axis)::bigint AS size,
                           coalesce(preprocessing->'center_crop'->>axis,
                                    preprocessing->'image_size'->>axis)::bigint AS crop
                    FROM (VALUES (0, "row", grid_rows, height), (1, col, grid_cols, width))
                        AS axes (axis, cell, grid, length)
                ) sizes
            ) grids
        ) borders
    ) boxes
$$;

COMMENT ON FUNCTION defect.patch_box IS
'The pixel box (x,y,width,height) of a grid cell in a photograph of the given size under an extractor''s grid and preprocessing. Example: SELECT defect.patch_box("row" => 3, col => 5, grid_rows => 16, grid_cols => 16, height => 1024, width => 768, preprocessing => ''{"image_size": [256, 256], "resize": "keep"}'');';
