-- Say, as a notice, how many stored images a search cannot list, and the command that helps.
CREATE OR REPLACE FUNCTION pgdefect.tell_missing_embeddings(
    searched text, extractor bigint, category text
) RETURNS void
LANGUAGE plpgsql
STABLE
SET search_path = pg_catalog
AS $$
DECLARE
    m record;
BEGIN
    SELECT * INTO m FROM pgdefect.missing_embeddings(searched, extractor, category);
    IF m.missing > 0 THEN
        RAISE NOTICE '% of % % of % have no % embedding and cannot be found', m.missing, m.looked_at,
            CASE searched WHEN 'picture' THEN 'images' ELSE 'anomalous images' END,
            array_to_string(m.categories, ', '),
            CASE searched WHEN 'picture' THEN 'image' ELSE 'defect' END
            USING HINT = (SELECT 'Make them with: ' || string_agg(
                              'pgdefect embed ' || pgdefect.shell_word(name), '; ' ORDER BY name)
                          FROM unnest(m.categories) name);
    END IF;
END
$$;

COMMENT ON FUNCTION pgdefect.tell_missing_embeddings IS
'Raises a notice where a search cannot list some images, because they have no embedding yet. Used by defect.similar_images and defect.similar_regions.';
