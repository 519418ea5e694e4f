-- The kept patch embeddings of an image as one bank's vectors are: transformed and rounded.
--
-- By pgvector's operators in single precision: normalize([(x - mean) components, constant]).
-- NULL where no patches of the bank's extractor are kept.
--
-- Same rule in Python:
--   pgdefect.vision.patchcore.transform.apply_transform
CREATE OR REPLACE FUNCTION pgdefect.transformed_patches(bank bigint, image bigint)
RETURNS :"vector_schema".vector[]
LANGUAGE plpgsql
STABLE PARALLEL SAFE
SET search_path = pg_catalog, :"vector_schema"
AS $$
DECLARE
    b pgdefect.memory_bank;
    patches vector[];
    mean vector;
    components vector[];
    offsets double precision[];
    last vector;
BEGIN
    SELECT * INTO STRICT b FROM pgdefect.memory_bank m WHERE m.id = bank;
    SELECT p.embeddings::vector[] INTO patches
    FROM pgdefect.image_patches p
    JOIN pgdefect.detector d ON d.extractor_id = p.extractor_id
    WHERE d.id = bank AND p.image_id = image;
    IF patches IS NULL THEN
        RETURN NULL;
    END IF;
    IF b.transform = 'unit' THEN
        patches := ARRAY(SELECT l2_normalize(v) FROM unnest(patches) v);
    ELSIF b.transform = 'centered' THEN
        mean := b.transform_mean::vector;
        last := ARRAY[b.transform_constant]::real[]::vector;
        IF b.transform_components IS NULL THEN
            patches := ARRAY(SELECT l2_normalize((v - mean) || last) FROM unnest(patches) v);
        ELSE
            SELECT array_agg(c.v ORDER BY c.n), array_agg(-(c.v <#> mean) ORDER BY c.n)
            INTO components, offsets
            FROM (
                SELECT (u.n - 1) / vector_dims(mean) AS n, array_agg(u.x ORDER BY u.n)::vector AS v
                FROM unnest(b.transform_components) WITH ORDINALITY u(x, n)
                GROUP BY 1
            ) c;
            patches := ARRAY(
                SELECT l2_normalize(
                    ARRAY(SELECT (-(c.v <#> p.v) - c.shift)::real
                          FROM unnest(components, offsets) c(v, shift))::vector || last)
                FROM unnest(patches) p(v));
        END IF;
    END IF;
    IF b.precision = 'half' THEN
        patches := patches::halfvec[]::vector[];
    END IF;
    RETURN patches;
END
$$;

COMMENT ON FUNCTION pgdefect.transformed_patches IS
'The kept patch embeddings of an image in the space of one memory bank, row by row. Used by defect.inspect.';
