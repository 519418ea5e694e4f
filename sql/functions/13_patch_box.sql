-- Where a grid cell lies in the photograph: 'x,y,width,height' in its pixels.
--
-- preprocessing is the extractor's: image_size [height, width] and center_crop the same
-- or null. The same arithmetic as Preprocessing.grid_to_pixels.
CREATE OR REPLACE FUNCTION defect.patch_box(
    "row" integer, col integer, grid_rows integer, grid_cols integer,
    height integer, width integer, preprocessing jsonb
) RETURNS text
LANGUAGE sql
IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog
AS $$
    SELECT format('%s,%s,%s,%s', x0, y0, x1 - x0, y1 - y0)
    FROM (
        SELECT round((left_edge + col * step_x) * scale_x)::integer AS x0,
               round((top_edge + "row" * step_y) * scale_y)::integer AS y0,
               round((left_edge + (col + 1) * step_x) * scale_x)::integer AS x1,
               round((top_edge + ("row" + 1) * step_y) * scale_y)::integer AS y1
        FROM (
            SELECT height / size_h AS scale_y, width / size_w AS scale_x,
                   crop_h / grid_rows AS step_y, crop_w / grid_cols AS step_x,
                   floor((size_h - crop_h) / 2) AS top_edge,
                   floor((size_w - crop_w) / 2) AS left_edge
            FROM (
                SELECT (preprocessing->'image_size'->>0)::double precision AS size_h,
                       (preprocessing->'image_size'->>1)::double precision AS size_w,
                       coalesce(preprocessing->'center_crop'->>0, preprocessing->'image_size'->>0)::double precision AS crop_h,
                       coalesce(preprocessing->'center_crop'->>1, preprocessing->'image_size'->>1)::double precision AS crop_w
            ) sizes
        ) geometry
    ) edges
$$;

COMMENT ON FUNCTION defect.patch_box IS
'The pixel box (x,y,width,height) of a grid cell in a photograph of the given size under an extractor''s preprocessing.';
