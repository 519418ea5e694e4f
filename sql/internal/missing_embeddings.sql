-- How many stored images a search cannot list, because what it compares has not been made of them.
--
-- searched    picture: images without an image embedding; defect, region: images known to be
--             anomalous without a defect embedding
-- category    whose; NULL means of all that the extractor's active detectors judge
--
-- The newest 1,000 images are looked at, so that a search need not read a large category: looked_at
-- says how many of them there were. Simulated defects and retired images do not count.
CREATE OR REPLACE FUNCTION pgdefect.missing_embeddings(
    searched text, extractor bigint, category text DEFAULT NULL
) RETURNS TABLE (missing bigint, looked_at bigint, categories text[])
LANGUAGE sql
STABLE
SET search_path = pg_catalog
AS $$
    SELECT count(*) FILTER (WHERE n.lacks), count(*),
           array_agg(DISTINCT n.name ORDER BY n.name) FILTER (WHERE n.lacks)
    FROM (
        SELECT c.name, CASE searched WHEN 'picture' THEN NOT EXISTS (
                   SELECT FROM pgdefect.image_embedding e
                   WHERE e.extractor_id = extractor AND e.image_id = i.id)
               ELSE NOT EXISTS (
                   SELECT FROM pgdefect.defect_embedding e
                   WHERE e.extractor_id = extractor AND e.image_id = i.id) END AS lacks
        FROM pgdefect.image i
        JOIN pgdefect.category c ON c.id = i.category_id AND c.retired_at IS NULL
        WHERE (c.name = missing_embeddings.category
               OR missing_embeddings.category IS NULL AND EXISTS (
                   SELECT FROM pgdefect.detector d
                   WHERE d.category_id = c.id AND d.active AND d.extractor_id = extractor))
          AND i.retired_at IS NULL AND i.split <> 'simulated'
          AND (searched = 'picture' OR i.known_label = 'anomalous')
        ORDER BY i.id DESC LIMIT 1000
    ) n
$$;

COMMENT ON FUNCTION pgdefect.missing_embeddings IS
'How many of the newest 1,000 images a search by picture, defect or region cannot list, because they have no such embedding, and of which categories. Used by defect.similar_images, defect.similar_regions and pgdefect search.';
