-- What defect.similar_images looks for: its arguments as a query of pgdefect.neighbors.
--
-- Returns searched (picture, defect or region), the extractor, the vector and the filter. It
-- stands apart from the public function because in PL/pgSQL a column of the result cannot have
-- an argument's name (category, split, part).
CREATE OR REPLACE FUNCTION pgdefect.query_by_images(
    image text,
    category text,
    label text,
    defect_type text,
    exclude_part boolean,
    simulated boolean,
    kind text,
    by text,
    split text,
    part text,
    since timestamptz,
    until timestamptz,
    attributes jsonb,
    max_distance double precision,
    also_like text[],
    unlike text[],
    all_categories boolean,
    own_copies boolean,
    model text,
    exclude_group boolean,
    OUT searched text,
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
    detector_kind text := pgdefect.renamed_argument(
        'similar_images', 'kind', query_by_images.kind, 'model', model);
    leave_out_part boolean := coalesce(pgdefect.renamed_argument(
        'similar_images', 'exclude_part', exclude_part, 'exclude_group', exclude_group), false);
    unlike_weight CONSTANT real := 0.5;
    query_id bigint := defect.find_image(image, category);
    own text := (SELECT c.name FROM pgdefect.image i JOIN pgdefect.category c ON c.id = i.category_id
                 WHERE i.id = query_id);
    likes bigint[] := query_id || ARRAY(SELECT defect.find_image(word, coalesce(category, own))
                                        FROM unnest(also_like) word);
    unlikes bigint[] := ARRAY(SELECT defect.find_image(word, coalesce(category, own))
                              FROM unnest(unlike) word);
    listed text;
    away vector;
BEGIN
    IF category IS NOT NULL AND NOT EXISTS (
        SELECT FROM pgdefect.category c WHERE c.name = query_by_images.category
    ) THEN
        RAISE EXCEPTION 'there is no category %', quote_literal(category)
            USING ERRCODE = 'PD404', HINT = 'SELECT category FROM defect.categories lists them.';
    END IF;
    listed := CASE WHEN all_categories THEN NULL ELSE coalesce(category, own) END;
    SELECT e.extractor_id INTO extractor
    FROM pgdefect.image_embedding e
    JOIN pgdefect.image i ON i.id = e.image_id
    LEFT JOIN pgdefect.detector d
        ON d.category_id = i.category_id AND d.active AND d.extractor_id = e.extractor_id
    WHERE e.image_id = query_id AND (detector_kind IS NULL OR d.kind = detector_kind)
    ORDER BY d.id IS NULL, pgdefect.kind_preference(d.kind), e.extractor_id DESC
    LIMIT 1;
    IF NOT FOUND AND detector_kind IS NOT NULL THEN
        RAISE EXCEPTION 'image % has no embedding by an active % detector', query_id, quote_literal(detector_kind)
            USING ERRCODE = 'PD404',
                  HINT = 'SELECT kind, category FROM defect.detectors WHERE active lists them.';
    ELSIF NOT FOUND THEN
        RAISE EXCEPTION 'image % has no embedding yet', query_id
            USING ERRCODE = 'PD404',
                  HINT = 'pgdefect inspect or pgdefect train makes embeddings of a category''s images.';
    END IF;
    searched := coalesce(query_by_images.by, CASE WHEN EXISTS (
        SELECT FROM pgdefect.defect_embedding e
        WHERE e.extractor_id = extractor AND e.image_id = query_id
    ) AND ((
        SELECT s.is_anomalous FROM pgdefect.inspection s
        JOIN pgdefect.detector d ON d.id = s.detector_id AND d.extractor_id = extractor
        WHERE s.image_id = query_id AND (detector_kind IS NULL OR d.kind = detector_kind)
        ORDER BY s.inspected_at DESC, s.created_at DESC, s.id DESC LIMIT 1
    ) OR EXISTS (
        SELECT FROM pgdefect.image i WHERE i.id = query_id AND i.known_label = 'anomalous'
    )) THEN 'defect' ELSE 'picture' END);
    SELECT avg(l2_normalize(pgdefect.image_vector(u.id, searched, extractor))) INTO query FROM unnest(likes) u(id);
    IF unlikes <> '{}' THEN
        SELECT avg(l2_normalize(pgdefect.image_vector(u.id, searched, extractor))) INTO away FROM unnest(unlikes) u(id);
        query := query - away * array_fill(unlike_weight, ARRAY[vector_dims(away)])::vector;
    END IF;
    IF vector_norm(query) < 1e-6 THEN
        RAISE EXCEPTION 'the examples and counter-examples cancel out'
            USING ERRCODE = 'PD400', HINT = 'Leave some of them out.';
    END IF;
    PERFORM pgdefect.tell_missing_embeddings(searched, extractor, listed);
    filter := jsonb_build_object(
        'category', listed, 'label', label, 'defect_type', defect_type, 'split', split,
        'part', part, 'since', since, 'until', until, 'attributes', attributes,
        'max_distance', max_distance, 'except_images', likes || unlikes,
        'except_part', leave_out_part, 'simulated', simulated, 'own_copies', own_copies);
END
$$;

COMMENT ON FUNCTION pgdefect.query_by_images IS
'What defect.similar_images looks for: the kind of embedding, the extractor, a vector made of examples and counter-examples, and the filter. Used by defect.similar_images.';
