-- The k stored images whose embedding is nearest to a query embedding of one extractor.
--
-- Filters that are NULL do not apply. Retired images and categories are never returned.
-- except_image leaves out that image and every copy of its file; except_group leaves out
-- every image of that physical part (the pair category, group). Images with simulated
-- defects are returned only if simulated is true.
-- Always k rows where k images pass the filters: the index is walked on until it has them
-- (iterative scan), and where its limits end the walk early the filtered rows are scanned.
CREATE OR REPLACE FUNCTION pgdefect.nearest_images(
    extractor bigint,
    query :"vector_schema".halfvec,
    k integer DEFAULT 10,
    category text DEFAULT NULL,
    label text DEFAULT NULL,
    defect_type text DEFAULT NULL,
    except_image bigint DEFAULT NULL,
    except_group boolean DEFAULT false,
    except_sha256 text DEFAULT NULL,
    exact boolean DEFAULT false,
    simulated boolean DEFAULT false
) RETURNS TABLE (image_id bigint, distance double precision)
LANGUAGE plpgsql
STABLE
ROWS 10
SET search_path = pg_catalog, :"vector_schema"
SET hnsw.ef_search = 40
SET hnsw.iterative_scan = strict_order
AS $$
DECLARE
    dim integer;
    expression text;
    statement text;
    query_image pgdefect.image;
    categories bigint[];
    ids bigint[];
    distances double precision[];
BEGIN
    SELECT e.embedding_dim INTO dim FROM pgdefect.extractor e WHERE e.id = extractor;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no extractor %', extractor USING ERRCODE = 'PD404';
    END IF;
    IF vector_dims(query) <> dim THEN
        RAISE EXCEPTION 'the query has % dimensions and extractor % makes %',
            vector_dims(query), extractor, dim
            USING ERRCODE = 'PD409', HINT = 'Search with an embedding of the same extractor.';
    END IF;
    IF except_image IS NOT NULL THEN
        SELECT * INTO query_image FROM pgdefect.image i WHERE i.id = except_image;
    END IF;
    -- Looked up first: the planner cannot foresee how many images a joined category leaves,
    -- and sorts them all where walking the index would do.
    IF category IS NOT NULL OR EXISTS (SELECT FROM pgdefect.category WHERE retired_at IS NOT NULL) THEN
        SELECT coalesce(array_agg(c.id), '{}') INTO categories FROM pgdefect.category c
        WHERE c.retired_at IS NULL AND (nearest_images.category IS NULL OR c.name = nearest_images.category);
    END IF;
    -- As pgdefect.distance.indexed_type has it: a halfvec index would round once more.
    expression := format('e.embedding::%2$s(%1$s) <=> $1::%2$s(%1$s)', dim,
                         CASE WHEN dim <= 2000 THEN 'vector' ELSE 'halfvec' END);
    statement := format(
        'SELECT i.id, (%1$s)::double precision AS distance
         FROM pgdefect.image_embedding e
         JOIN pgdefect.image i ON i.id = e.image_id
         WHERE e.extractor_id = %2$s
           AND i.retired_at IS NULL
           AND ($10 OR i.split <> ''simulated'')
           AND ($3 IS NULL OR i.category_id = ANY ($3))
           AND ($4 IS NULL OR i.label = $4)
           AND ($5 IS NULL OR i.defect_type = $5)
           AND ($6 IS NULL OR i.id <> $6)
           AND ($7 IS NULL OR i.sha256 <> $7)
           AND ($9 IS NULL OR i.group_name IS DISTINCT FROM $9 OR i.category_id <> $8)
         ORDER BY ',
        expression, extractor);
    PERFORM set_config('hnsw.ef_search', least(1000, greatest(100, 4 * k))::text, true);
    statement := 'SELECT array_agg(n.id), array_agg(n.distance) FROM (' || statement;
    IF NOT exact THEN
        EXECUTE statement || expression || ' LIMIT $2) n'
            INTO ids, distances
            USING query, k, categories, label, defect_type, except_image,
                  coalesce(except_sha256, query_image.sha256), query_image.category_id,
                  CASE WHEN except_group THEN query_image.group_name END, simulated;
    END IF;
    IF coalesce(cardinality(ids), 0) < k THEN
        EXECUTE statement || '(' || expression || ') + 0, i.id LIMIT $2) n'
            INTO ids, distances
            USING query, k, categories, label, defect_type, except_image,
                  coalesce(except_sha256, query_image.sha256), query_image.category_id,
                  CASE WHEN except_group THEN query_image.group_name END, simulated;
    END IF;
    RETURN QUERY SELECT * FROM unnest(ids, distances);
END
$$;

COMMENT ON FUNCTION pgdefect.nearest_images IS
'The k stored images nearest (cosine distance) to a query embedding of one extractor, under filters.';
