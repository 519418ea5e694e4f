-- The k stored images most like a stored image, or like several, nearest first.
--
-- image is an id, the end of a path, or the start of a sha256. by says what is compared:
--   picture   the whole image
--   defect    what departs from normal in it
--   region    its worst anomalous region, with the most similar region of each other image
-- Without it: defect where the image's newest inspection found it anomalous, or it is known to be,
-- and it has a defect embedding, else picture; searched_by tells. distance is a cosine distance,
-- 0 to 2; similarity is 1 - distance.
--
-- Listed are images of the product that the image shows, as in `pgdefect search`; of another one
-- that category names, or of all if all_categories is true. category also says whose image is
-- meant, where several products have one of that name.
--
-- also_like names further examples, unlike counter-examples: looked for is the mean of the
-- examples' unit vectors, less half the mean of the counter-examples' (Rocchio 1971).
-- The examples themselves are left out, and copies of their files unless own_copies is true;
-- exclude_part leaves out every image of their parts. part keeps images of one part only; since
-- and until are times of
-- storing; attributes is a JSON object that an image's attributes must contain. Labels and
-- defect types are the known ones: a review's word before the data set's.
-- Near-duplicates are folded into one row, and copies says how many images it stands for;
-- not so if fold is false. Images with simulated defects are listed only if simulated is true.
-- Embeddings are those of the extractor of the category's active detector: of the kind that
-- kind names (patchcore, efficient_ad), else the preferred one where several are active,
-- else of the newest extractor the image has an embedding of.
--
-- model is the old name of kind, exclude_group of exclude_part.
--
-- Same rule in Python:
--   pgdefect.usecases.search.search.combined
CREATE OR REPLACE FUNCTION defect.similar_images(
    image text,
    k integer DEFAULT 10,
    category text DEFAULT NULL,
    label text DEFAULT NULL,
    defect_type text DEFAULT NULL,
    exclude_part boolean DEFAULT NULL,
    simulated boolean DEFAULT false,
    kind text DEFAULT NULL,
    by text DEFAULT NULL,
    split text DEFAULT NULL,
    part text DEFAULT NULL,
    since timestamptz DEFAULT NULL,
    until timestamptz DEFAULT NULL,
    attributes jsonb DEFAULT NULL,
    max_distance double precision DEFAULT NULL,
    also_like text[] DEFAULT NULL,
    unlike text[] DEFAULT NULL,
    fold boolean DEFAULT true,
    all_categories boolean DEFAULT false,
    own_copies boolean DEFAULT false,
    model text DEFAULT NULL,
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
    detector_kind text := pgdefect.renamed_argument(
        'similar_images', 'kind', similar_images.kind, 'model', model);
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
    extractor bigint;
    searched text;
    query vector;
    away vector;
BEGIN
    IF category IS NOT NULL AND NOT EXISTS (
        SELECT FROM pgdefect.category c WHERE c.name = similar_images.category
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
    searched := coalesce(similar_images.by, CASE WHEN EXISTS (
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
    RETURN QUERY SELECT * FROM pgdefect.neighbors(searched, extractor, query, k, jsonb_build_object(
        'category', listed, 'label', label, 'defect_type', defect_type, 'split', split,
        'part', part, 'since', since, 'until', until, 'attributes', attributes,
        'max_distance', max_distance, 'except_images', likes || unlikes,
        'except_part', leave_out_part, 'simulated', simulated, 'own_copies', own_copies), fold);
END
$$;

-- The same of an image named by its id.
CREATE OR REPLACE FUNCTION defect.similar_images(
    image bigint,
    k integer DEFAULT 10,
    category text DEFAULT NULL,
    label text DEFAULT NULL,
    defect_type text DEFAULT NULL,
    exclude_part boolean DEFAULT NULL,
    simulated boolean DEFAULT false,
    kind text DEFAULT NULL,
    by text DEFAULT NULL,
    split text DEFAULT NULL,
    part text DEFAULT NULL,
    since timestamptz DEFAULT NULL,
    until timestamptz DEFAULT NULL,
    attributes jsonb DEFAULT NULL,
    max_distance double precision DEFAULT NULL,
    also_like text[] DEFAULT NULL,
    unlike text[] DEFAULT NULL,
    fold boolean DEFAULT true,
    all_categories boolean DEFAULT false,
    own_copies boolean DEFAULT false,
    model text DEFAULT NULL,
    exclude_group boolean DEFAULT NULL
) RETURNS TABLE (
    rank bigint, image_id bigint, distance double precision, similarity double precision,
    category_name text, image_label text, image_defect_type text, path text, image_split text,
    image_part text, copies integer, region_id bigint, region_box text, searched_by text
)
LANGUAGE sql
VOLATILE
ROWS 10
SET search_path = pg_catalog
AS $$
    SELECT * FROM defect.similar_images(
        image::text, k, category, label, defect_type, exclude_part, simulated, kind, by, split,
        part, since, until, attributes, max_distance, also_like, unlike, fold, all_categories,
        own_copies, model, exclude_group)
$$;

COMMENT ON FUNCTION defect.similar_images(
    text, integer, text, text, text, boolean, boolean, text, text, text, text, timestamptz,
    timestamptz, jsonb, double precision, text[], text[], boolean, boolean, boolean, text, boolean
) IS
'The k stored images most like a stored one or several, by picture, defect or region, by cosine distance (0 to 2), of the same product unless category or all_categories says otherwise, under optional filters, near-duplicates folded. Example: SELECT * FROM defect.similar_images(''scratch/003.png'', k => 10, by => ''picture'', label => ''anomalous'');';

COMMENT ON FUNCTION defect.similar_images(
    bigint, integer, text, text, text, boolean, boolean, text, text, text, text, timestamptz,
    timestamptz, jsonb, double precision, text[], text[], boolean, boolean, boolean, text, boolean
) IS
'The same of an image named by its id. Example: SELECT rank, distance, path FROM defect.similar_images(6, k => 3);';
