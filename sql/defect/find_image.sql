-- The one stored image that a word names: its id, the end of its path, or the start of
-- its sha256 (8 characters or more). An image with a simulated defect is meant only where no
-- other is called so. category says whose is meant where several products have an image of that
-- name; where none of that category is called so, it does not matter.
CREATE OR REPLACE FUNCTION defect.find_image(image text, category text DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql
STABLE PARALLEL SAFE
SET search_path = pg_catalog
AS $$
DECLARE
    ids bigint[] := pgdefect.images_called(image);
    own bigint[];
BEGIN
    IF cardinality(ids) > 1 AND category IS NOT NULL THEN
        SELECT array_agg(i.id ORDER BY i.id) INTO own
        FROM pgdefect.image i JOIN pgdefect.category c ON c.id = i.category_id
        WHERE i.id = ANY (ids) AND c.name = find_image.category;
        ids := coalesce(own, ids);
    END IF;
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
            USING ERRCODE = 'PD409',
                  HINT = 'Name one of them by its id, or with its category.';
    END IF;
    RETURN ids[1];
END
$$;

-- The same of an image named by its id, which must be there.
CREATE OR REPLACE FUNCTION defect.find_image(image bigint, category text DEFAULT NULL)
RETURNS bigint
LANGUAGE sql
STABLE PARALLEL SAFE
SET search_path = pg_catalog
AS $$
    SELECT defect.find_image(image::text, category)
$$;

COMMENT ON FUNCTION defect.find_image(text, text) IS
'The id of the one image named by an id, the end of a path, or the start of a sha256; category says whose is meant where several products have one of that name. Example: SELECT defect.find_image(''scratch/003.png'', category => ''leather'');';

COMMENT ON FUNCTION defect.find_image(bigint, text) IS
'The same of an image named by its id. Example: SELECT defect.find_image(6);';
