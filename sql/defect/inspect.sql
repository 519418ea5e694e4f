-- Judge a stored image by any memory bank, from its kept patch embeddings; stores nothing.
--
-- image     an id, the end of a path, or the start of a sha256
-- bank      any bank of the extractor that the patches were kept for; NULL takes the active one
--           of the image's category
-- category  whose image is meant, where several products have one of that name
--
-- Upper bounds of all patches' distances tell which may be the worst (pgdefect.bound_patches); the
-- distances that the score is made of are proven (pgdefect.prove_worst). An image of which no
-- patches are kept for the bank's extractor gets a row without a verdict: keep them with
-- `pgdefect inspect … --keep-patches`. Kept patches are in half precision: against an inspection of the
-- photograph itself the score differs by about 1e-4 of its size.
--
-- Same rule in Python:
--   pgdefect.usecases.common.patch_search.score_image
--   pgdefect.vision.patchcore.scoring.reweighted
CREATE OR REPLACE FUNCTION defect.inspect(
    image text, bank bigint DEFAULT NULL, category text DEFAULT NULL
) RETURNS TABLE (
    image_id bigint, bank_id bigint, verdict text, raw_score double precision,
    normalized_score double precision, threshold double precision,
    worst_row smallint, worst_col smallint, worst_box text,
    bank_position integer, normal_image_id bigint, normal_path text
)
LANGUAGE plpgsql
STABLE
ROWS 1
SET search_path = pg_catalog, :"vector_schema"
AS $$
#variable_conflict use_column
DECLARE
    judged pgdefect.image;
    d pgdefect.detector;
    b pgdefect.memory_bank;
    grid record;
    vectors vector[];
    positions integer[];
    distances double precision[];
    num_worst integer;
    worst integer[];
    score double precision;
    support double precision[];
BEGIN
    SELECT i.* INTO STRICT judged FROM pgdefect.image i WHERE i.id = defect.find_image(image, inspect.category);
    IF bank IS NULL THEN
        SELECT x.* INTO d FROM pgdefect.detector x
        JOIN pgdefect.memory_bank m ON m.id = x.id
        WHERE x.category_id = judged.category_id AND x.active
        ORDER BY pgdefect.kind_preference(x.kind) LIMIT 1;
    ELSE
        SELECT x.* INTO d FROM pgdefect.detector x WHERE x.id = bank;
    END IF;
    SELECT m.* INTO b FROM pgdefect.memory_bank m WHERE m.id = d.id;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no memory bank %',
            coalesce(bank::text, format('in use for the category of image %s', judged.id))
            USING ERRCODE = 'PD404', HINT = 'SELECT bank_id, category FROM defect.banks lists them.';
    END IF;
    vectors := pgdefect.transformed_patches(b.id, judged.id);
    IF vectors IS NULL THEN
        -- A row all the same: of many images asked about, one must not end the query.
        RETURN QUERY SELECT judged.id, b.id, NULL::text, NULL::double precision, NULL::double precision,
                            d.threshold, NULL::smallint, NULL::smallint, NULL::text, NULL::integer,
                            NULL::bigint, NULL::text;
        RETURN;
    END IF;
    SELECT p.rows, p.cols, e.rows AS nominal_rows, e.cols AS nominal_cols, e.preprocessing INTO grid
    FROM pgdefect.image_patches p JOIN pgdefect.extractor e ON e.id = p.extractor_id
    WHERE p.extractor_id = d.extractor_id AND p.image_id = judged.id;

    num_worst := greatest(1, round(b.worst_share * cardinality(vectors)));
    SELECT p.positions, p.distances INTO positions, distances
    FROM pgdefect.bound_patches(b.id, vectors, grid.cols) found,
         pgdefect.prove_worst(b.id, vectors, found.positions, found.distances, num_worst) p;
    worst := ARRAY(
        SELECT u.n FROM unnest(distances) WITH ORDINALITY u(x, n) ORDER BY u.x DESC, u.n
        LIMIT num_worst);
    SELECT avg(distances[n]) INTO score FROM unnest(worst) n;

    IF b.num_neighbors > 1 THEN
        -- PatchCore's re-weighting, equation 7 (arXiv 2106.08265).
        EXECUTE format(
            'SELECT array_agg(pgdefect.metric_length($4, s.x) ORDER BY s.n)
             FROM (SELECT n.ordinality AS n, (p.embedding %s $1)::double precision AS x
                   FROM pgdefect.nearest_bank_vectors(
                       $2, (SELECT q.embedding FROM pgdefect.memory_bank_patch q
                            WHERE q.bank_id = $2 AND q.position = $3), $5, true)
                       WITH ORDINALITY n
                   JOIN pgdefect.memory_bank_patch p
                       ON p.bank_id = $2 AND p.position = n.nearest_position) s', b.operator)
        INTO support
        USING vectors[worst[1]], b.id, positions[worst[1]], b.metric, b.num_neighbors;
        SELECT score * (1 - exp(support[1] - max(x)) / sum(exp(x - m.highest))) INTO score
        FROM unnest(support) x, (SELECT max(y) AS highest FROM unnest(support) y) m;
    END IF;
    RETURN QUERY
        SELECT judged.id, b.id, CASE WHEN score > d.threshold THEN 'anomalous' ELSE 'normal' END,
               score, pgdefect.normalized_score(score, d.threshold, d.score_center), d.threshold,
               cell.y::smallint, cell.x::smallint,
               defect.patch_box(cell.y, cell.x, grid.nominal_rows, grid.nominal_cols,
                                judged.height, judged.width, grid.preprocessing),
               positions[worst[1]], i.id, r.path || '/' || i.path
        FROM (SELECT (worst[1] - 1) / grid.cols AS y, (worst[1] - 1) % grid.cols AS x) cell
        LEFT JOIN pgdefect.memory_bank_patch p
            ON p.bank_id = b.id AND p.position = positions[worst[1]]
        LEFT JOIN pgdefect.image i ON i.id = p.image_id
        LEFT JOIN pgdefect.image_root r ON r.id = i.root_id;
END
$$;

-- The same of an image named by its id.
CREATE OR REPLACE FUNCTION defect.inspect(
    image bigint, bank bigint DEFAULT NULL, category text DEFAULT NULL
) RETURNS TABLE (
    image_id bigint, bank_id bigint, verdict text, raw_score double precision,
    normalized_score double precision, threshold double precision,
    worst_row smallint, worst_col smallint, worst_box text,
    bank_position integer, normal_image_id bigint, normal_path text
)
LANGUAGE sql
STABLE
ROWS 1
SET search_path = pg_catalog
AS $$
    SELECT * FROM defect.inspect(image::text, bank, category)
$$;

COMMENT ON FUNCTION defect.inspect(text, bigint, text) IS
'What a memory bank says of a stored image whose patch embeddings are kept: verdict, raw score (a distance) and normalized score (0 to 1, 0.5 at the threshold), the worst place in pixels and the normal patch nearest to it. Any bank of the extractor can be asked; nothing is stored. The verdict is NULL where no patches are kept (pgdefect inspect --keep-patches). Example: SELECT b.bank_id, s.verdict, s.normalized_score FROM defect.banks b, defect.inspect(''scratch/003.png'', bank => b.bank_id) s;';

COMMENT ON FUNCTION defect.inspect(bigint, bigint, text) IS
'The same of an image named by its id. Example: SELECT verdict, normalized_score FROM defect.inspect(6);';
