-- What defect.similar_regions looks for: its arguments as a query of pgdefect.neighbors.
-- Why it stands apart: see pgdefect.query_by_images.
CREATE OR REPLACE FUNCTION pgdefect.query_by_region(
    region bigint,
    category text,
    label text,
    defect_type text,
    exclude_part boolean,
    simulated boolean,
    split text,
    part text,
    since timestamptz,
    until timestamptz,
    attributes jsonb,
    max_distance double precision,
    all_categories boolean,
    exclude_group boolean,
    OUT extractor bigint,
    OUT query :"vector_schema".vector,
    OUT filter jsonb
)
LANGUAGE plpgsql
-- Not stable: it says what has no embedding yet.
VOLATILE
SET search_path = pg_catalog, :"vector_schema"
AS $$
#variable_conflict use_column
DECLARE
    leave_out_part boolean := coalesce(pgdefect.renamed_argument(
        'similar_regions', 'exclude_part', exclude_part, 'exclude_group', exclude_group), false);
    asked record;
BEGIN
    SELECT g.extractor_id, g.image_id, g.embedding::vector,
           CASE WHEN NOT all_categories THEN coalesce(query_by_region.category, c.name) END AS listed
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
    extractor := asked.extractor_id;
    query := asked.embedding;
    PERFORM pgdefect.tell_missing_embeddings('region', extractor, asked.listed);
    filter := jsonb_build_object(
        'category', asked.listed, 'label', label, 'defect_type', defect_type, 'split', split,
        'part', part, 'since', since, 'until', until, 'attributes', attributes,
        'max_distance', max_distance, 'except_images', ARRAY[asked.image_id],
        'except_part', leave_out_part, 'simulated', simulated);
END
$$;

COMMENT ON FUNCTION pgdefect.query_by_region IS
'What defect.similar_regions looks for: the extractor, the region''s vector and the filter. Used by defect.similar_regions.';
