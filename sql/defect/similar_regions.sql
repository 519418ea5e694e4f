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
    category_name text, image_label text, image_defect_type text, path text, image_split text,
    image_part text, copies integer, region_id bigint, region_box text, searched_by text
)
LANGUAGE plpgsql
VOLATILE
ROWS 10
SET search_path = pg_catalog, :"vector_schema"
AS $$
#variable_conflict use_column
DECLARE
    leave_out_part boolean := coalesce(pgdefect.renamed_argument(
        'similar_regions', 'exclude_part', exclude_part, 'exclude_group', exclude_group), false);
    asked record;
BEGIN
    SELECT g.extractor_id, g.image_id, g.embedding::vector,
           CASE WHEN NOT all_categories THEN coalesce(similar_regions.category, c.name) END AS listed
    INTO asked
    FROM pgdefect.defect_region g
    JOIN pgdefect.image i ON i.id = g.image_id
    JOIN pgdefect.category c ON c.id = i.category_id
    WHERE g.id = region;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no region %', region
            USING ERRCODE = 'PD404',
                  HINT = 'Inspecting anomalous images stores their regions, and inspecting again replaces them.';
    END IF;
    PERFORM pgdefect.tell_missing_embeddings('region', asked.extractor_id, asked.listed);
    RETURN QUERY SELECT * FROM pgdefect.neighbors('region', asked.extractor_id, asked.embedding, k, jsonb_build_object(
        'category', asked.listed, 'label', label, 'defect_type', defect_type, 'split', split,
        'part', part, 'since', since, 'until', until, 'attributes', attributes,
        'max_distance', max_distance, 'except_images', ARRAY[asked.image_id],
        'except_part', leave_out_part, 'simulated', simulated), fold);
END
$$;

COMMENT ON FUNCTION defect.similar_regions IS
'The k stored images with an anomalous region most like a stored one, by cosine distance (0 to 2), under optional filters, near-duplicates folded. Example: SELECT * FROM defect.similar_regions((SELECT max(region_id) FROM defect.regions), k => 10, exclude_part => true);';
