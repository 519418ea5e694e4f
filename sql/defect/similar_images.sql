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
    category text, known_label text, known_defect_type text, path text, split text, part text,
    copies integer, region_id bigint, region_box text, searched_by text
)
LANGUAGE sql
VOLATILE
ROWS 10
SET search_path = pg_catalog
AS $$
    SELECT n.*
    FROM pgdefect.query_by_images(
        image, category, label, defect_type, exclude_part, simulated, kind, by, split, part,
        since, until, attributes, max_distance, also_like, unlike, all_categories, own_copies,
        model, exclude_group) q
    CROSS JOIN LATERAL pgdefect.neighbors(q.searched, q.extractor, q.query, k, q.filter, fold) n
    ORDER BY n.rank
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
    category text, known_label text, known_defect_type text, path text, split text, part text,
    copies integer, region_id bigint, region_box text, searched_by text
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
