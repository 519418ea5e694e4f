-- The k stored images with a region most like a stored region, nearest first.
--
-- region is the id of an anomalous region, as the column region_id of defect.similar_images
-- has it. Each image is listed by its most similar region. The region's own image and copies
-- of its file are left out. Listed are images of the product that the region's image shows, of
-- another one that category names, or of all if all_categories is true. Distances and the other
-- arguments are those of defect.similar_images. exclude_group is the old name of exclude_part.
CREATE OR REPLACE FUNCTION defect.similar_regions(
    region bigint,
    k integer DEFAULT 10,
    category text DEFAULT NULL,
    label text DEFAULT NULL,
    defect_type text DEFAULT NULL,
    exclude_part boolean DEFAULT NULL,
    simulated boolean DEFAULT false,
    split text DEFAULT NULL,
    part text DEFAULT NULL,
    since timestamptz DEFAULT NULL,
    until timestamptz DEFAULT NULL,
    attributes jsonb DEFAULT NULL,
    max_distance double precision DEFAULT NULL,
    fold boolean DEFAULT true,
    all_categories boolean DEFAULT false,
    exclude_group boolean DEFAULT NULL
) RETURNS TABLE (
    rank bigint, image_id bigint, distance double precision, similarity double precision,
    category text, known_label text, known_defect_type text, path text, split text, part text,
    copies integer, region_id bigint, region_box text, searched_by text
)
LANGUAGE sql
VOLATILE
ROWS 10
SET search_path = pg_catalog
AS $$
    SELECT n.*
    FROM pgdefect.query_by_region(
        region, category, label, defect_type, exclude_part, simulated, split, part, since, until,
        attributes, max_distance, all_categories, exclude_group) q
    CROSS JOIN LATERAL pgdefect.neighbors('region', q.extractor, q.query, k, q.filter, fold) n
    ORDER BY n.rank
$$;

COMMENT ON FUNCTION defect.similar_regions IS
'The k stored images with an anomalous region most like a stored one, by cosine distance (0 to 2), under optional filters, near-duplicates folded. Example: SELECT * FROM defect.similar_regions((SELECT max(region_id) FROM defect.regions), k => 10, exclude_part => true);';
