-- The one stored image that a word names: its id, the end of its path, or the start of
-- its sha256 (8 characters or more). An image with a simulated defect is meant only where no
-- other is called so.
CREATE OR REPLACE FUNCTION defect.find_image(image text) RETURNS bigint
LANGUAGE plpgsql
STABLE PARALLEL SAFE
SET search_path = pg_catalog
AS $$
DECLARE
    ids bigint[] := pgdefect.images_called(image);
BEGIN
    IF ids IS NULL THEN
        RAISE EXCEPTION 'no stored image is called %', quote_literal(image)
            USING ERRCODE = 'PD404',
                  HINT = 'Name an image by its id, the end of its path, or 8 or more characters of its sha256.';
    ELSIF cardinality(ids) > 1 THEN
        RAISE EXCEPTION '% images are called %: %', cardinality(ids), quote_literal(image),
            (SELECT string_agg(format('%s (%s, %s)', i.id, c.name, i.path), ', ' ORDER BY i.id)
             FROM unnest(ids[1:5]) u(id) JOIN pgdefect.image i USING (id)
             JOIN pgdefect.category c ON c.id = i.category_id)
            || CASE WHEN cardinality(ids) > 5 THEN ', …' ELSE '' END
            USING ERRCODE = 'PD409', HINT = 'Name one of them by its id.';
    END IF;
    RETURN ids[1];
END
$$;

COMMENT ON FUNCTION defect.find_image IS
'The id of the one image named by an id, the end of a path, or the start of a sha256. Example: SELECT defect.find_image(''scratch/003.png'');';
