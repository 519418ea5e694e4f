-- The stored images that a word may name: by id, else by the start of a sha256 (8 characters or
-- more), else by the end of a path; NULL for none. Images with simulated defects are among them
-- only where no other is called so.
CREATE OR REPLACE FUNCTION pgdefect.images_called(image text) RETURNS bigint[]
LANGUAGE plpgsql
STABLE PARALLEL SAFE
SET search_path = pg_catalog
AS $$
DECLARE
    ids bigint[];
    simulated_ids bigint[];
    suffix text := '%/' || replace(replace(replace(ltrim(image, '/'), '\', '\\'), '%', '\%'), '_', '\_');
BEGIN
    IF image ~ '^[0-9]{1,18}$' THEN
        SELECT array_agg(i.id) INTO ids FROM pgdefect.image i WHERE i.id = image::bigint;
    END IF;
    IF ids IS NULL AND image ~ '^[0-9a-f]{8,64}$' THEN
        SELECT array_agg(i.id ORDER BY i.id) FILTER (WHERE i.split <> 'simulated'),
               array_agg(i.id ORDER BY i.id) FILTER (WHERE i.split = 'simulated')
        INTO ids, simulated_ids
        FROM pgdefect.image i WHERE i.sha256 LIKE image || '%';
    END IF;
    IF coalesce(ids, simulated_ids) IS NULL THEN
        SELECT array_agg(i.id ORDER BY i.id) FILTER (WHERE i.split <> 'simulated'),
               array_agg(i.id ORDER BY i.id) FILTER (WHERE i.split = 'simulated')
        INTO ids, simulated_ids
        FROM pgdefect.image i JOIN pgdefect.image_root r ON r.id = i.root_id
        WHERE '/' || ltrim(r.path, '/') || '/' || i.path LIKE suffix;
    END IF;
    RETURN coalesce(ids, simulated_ids);
END
$$;

COMMENT ON FUNCTION pgdefect.images_called IS
'The ids of the images that a word may name, NULL for none. Used by defect.find_image.';
