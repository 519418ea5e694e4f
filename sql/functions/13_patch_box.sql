-- Where a grid cell lies in the photograph: 'x,y,width,height' in its pixels.
--
-- preprocessing, grid_rows and grid_cols are the extractor's. Where it keeps the aspect ratio
-- ("resize": "keep"), that is the grid of an image shaped like image_size; this image's own
-- follows from its height and width. The same arithmetic as Preprocessing.input_size_of and
-- grid_to_pixels.
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
                   crop_h / (grid_rows * grown_h) AS step_y,
                   crop_w / (grid_cols * grown_w) AS step_x,
                   floor((size_h - crop_h) / 2) AS top_edge,
                   floor((size_w - crop_w) / 2) AS left_edge
            FROM (
                SELECT (preprocessing->'image_size'->>0)::double precision AS size_h,
                       (preprocessing->'image_size'->>1)::double precision AS size_w,
                       coalesce(preprocessing->'center_crop'->>0, preprocessing->'image_size'->>0)::double precision AS crop_h,
                       coalesce(preprocessing->'center_crop'->>1, preprocessing->'image_size'->>1)::double precision AS crop_w
            ) sizes
            CROSS JOIN LATERAL (
                SELECT sqrt(size_h * size_w / (height::double precision * width)) / 16 AS scale
            ) kept
            CROSS JOIN LATERAL (
                SELECT CASE preprocessing->>'resize' WHEN 'keep' THEN
                           least(greatest(floor(height * scale + 0.5), 4), 256)
                           / least(greatest(floor(size_h / 16 + 0.5), 4), 256)
                       ELSE 1 END AS grown_h,
                       CASE preprocessing->>'resize' WHEN 'keep' THEN
                           least(greatest(floor(width * scale + 0.5), 4), 256)
                           / least(greatest(floor(size_w / 16 + 0.5), 4), 256)
                       ELSE 1 END AS grown_w
            ) grown
        ) geometry
    ) edges
$$;

COMMENT ON FUNCTION defect.patch_box IS
'The pixel box (x,y,width,height) of a grid cell in a photograph of the given size under an extractor''s grid and preprocessing.';
