-- The k stored images nearest to a query vector, by one of three kinds of vectors.
--
-- searched   picture, defect or region (pgdefect.searched_vectors)
-- query      a vector of that extractor and kind
-- filter     which images may be returned (pgdefect.search_condition); besides, max_distance:
--            none farther than that
-- exact      true scans all rows that pass the filter; else pgdefect.search_plan chooses
-- fold       near-duplicates are one row, the nearest: images of one file, of one part (the
--            pair category, group), or with vectors 1e-6 or less apart. copies is how many
--            images a row stands for, of those that come before the image after the last row.
--
-- By region an image is found by the most similar of its regions: region_id. By defect
-- region_id is the image's worst region, by picture NULL.
-- Always k rows where k pass: the index is walked on until it has them (iterative scan), and
-- where its limits end the walk early the rows that pass are scanned.
CREATE OR REPLACE FUNCTION pgdefect.nearest(
    searched text,
    extractor bigint,
    query :"vector_schema".vector,
    k integer DEFAULT 10,
    filter jsonb DEFAULT '{}',
    exact boolean DEFAULT false,
    fold boolean DEFAULT true
) RETURNS TABLE (image_id bigint, region_id bigint, distance double precision, copies integer)
LANGUAGE plpgsql
-- Not stable: pgdefect.search_plan is not.
VOLATILE
ROWS 10
SET search_path = pg_catalog, :"vector_schema"
SET hnsw.ef_search = 40 -- a placeholder: set below, and restored at the end of the call
SET hnsw.iterative_scan = strict_order
SET hnsw.max_scan_tuples = 20000
SET enable_sort = on
AS $$
#variable_conflict use_column
DECLARE
    same CONSTANT double precision := 1e-6;
    v record := pgdefect.searched_vectors(searched, extractor);
    max_distance double precision := (filter ->> 'max_distance')::double precision;
    filters jsonb := filter - 'max_distance';
    plan record;
    scan boolean := exact;
    round integer := 0;
    at_least bigint := 0;
    num_passed bigint;
    num_found integer;
    ids bigint[];
    regions bigint[];
    distances double precision[];
    vectors :"vector_schema".halfvec[];
    digests text[];
    categories bigint[];
    parts text[];
    firsts integer[];
    leaders integer[];
    roots integer[];
    kept integer[];
    counts integer[];
    leader integer;
    complete boolean;
BEGIN
    IF vector_dims(query) <> v.dim THEN
        RAISE EXCEPTION 'the query has % dimensions, and what extractor % is searched for by % has %',
            vector_dims(query), extractor, searched, v.dim
            USING ERRCODE = 'PD409', HINT = 'Search with a vector of the same extractor and kind.';
    ELSIF k IS NULL OR k < 1 THEN
        RAISE EXCEPTION 'k must be at least 1, not %', coalesce(k::text, 'NULL') USING ERRCODE = 'PD400';
    END IF;
    LOOP
        plan := pgdefect.search_plan(searched, extractor, k, filters, scan, fold, round, at_least);
        scan := plan.way = 'exact';
        PERFORM set_config('hnsw.ef_search', plan.ef_search::text, true),
                -- A walk that finds little ends where a scan would have been through.
                set_config('hnsw.max_scan_tuples',
                           least(2147483647, greatest(4 * plan.walked, plan.scanned / plan.walk_cost))::text, true),
                set_config('enable_sort', scan::text, true);
        -- Sorted outside the inner query, the distance hides from the index.
        EXECUTE format(
            'SELECT count(*), min(f.num_passed), array_agg(f.image_id), array_agg(f.region_id),
                    array_agg(f.distance), array_agg(f.embedding), array_agg(f.sha256),
                    array_agg(f.category_id), array_agg(f.group_name)
             FROM (SELECT p.*, %s AS num_passed
                   FROM (SELECT e.image_id, %s AS region_id, (%s)::double precision AS distance,
                                e.embedding, i.sha256, i.category_id, i.group_name
                         FROM pgdefect.%I e JOIN pgdefect.image i ON i.id = e.image_id
                         WHERE e.extractor_id = %s AND %s %s) p
                   %s LIMIT %s) f',
            CASE WHEN plan.at_most IS NULL THEN 'NULL::bigint' ELSE 'count(*) OVER ()' END,
            CASE searched WHEN 'region' THEN 'e.id' ELSE 'NULL::bigint' END,
            v.distance, v.relation, extractor, plan.condition,
            CASE WHEN scan THEN format('LIMIT %L', plan.at_most) ELSE 'ORDER BY ' || v.distance END,
            CASE WHEN scan THEN 'ORDER BY p.distance, p.image_id' END,
            plan.wanted)
        INTO num_found, num_passed, ids, regions, distances, vectors, digests, categories, parts
        USING query;
        PERFORM set_config('enable_sort', 'on', true);
        IF num_passed = plan.at_most THEN
            at_least := num_passed;
            scan := false;
            CONTINUE;
        END IF;
        -- For each row the first one with its image, and the first that it may be folded into.
        SELECT array_agg(s.first_of_image ORDER BY s.n),
               array_agg(least(s.first_of_image, CASE WHEN fold THEN least(s.first_of_file, s.first_of_part) END)
                         ORDER BY s.n)
        INTO firsts, leaders
        FROM (
            SELECT n, min(n) OVER (PARTITION BY id) AS first_of_image,
                   min(n) OVER (PARTITION BY sha256) AS first_of_file,
                   CASE WHEN part IS NOT NULL THEN min(n) OVER (PARTITION BY category_id, part) END AS first_of_part
            FROM (SELECT u.n::integer, u.id, u.sha256, u.category_id, u.part
                  FROM unnest(ids, digests, categories, parts)
                  WITH ORDINALITY u(id, sha256, category_id, part, n)) c
        ) s;
        kept := '{}';
        counts := array_fill(0, ARRAY[num_found]);
        roots := counts;
        complete := false;
        FOR n IN 1 .. num_found LOOP
            complete := distances[n] > max_distance;
            EXIT WHEN complete;
            leader := leaders[n];
            IF fold AND leader = n THEN
                FOR m IN REVERSE n - 1 .. 1 LOOP
                    -- Unit vectors that lie so near each other lie about as far from the query.
                    EXIT WHEN distances[n] - distances[m] > same + 2 * sqrt(same * greatest(distances[n], 0));
                    IF vectors[n] <=> vectors[m] <= same THEN
                        leader := m;
                        EXIT;
                    END IF;
                END LOOP;
            END IF;
            IF leader = n THEN
                complete := cardinality(kept) = k;
                EXIT WHEN complete;
                roots[n] := n;
                kept := kept || n;
            ELSE
                roots[n] := roots[leader];
                CONTINUE WHEN firsts[n] < n;
            END IF;
            counts[roots[n]] := counts[roots[n]] + 1;
        END LOOP;
        EXIT WHEN complete OR num_found < plan.wanted AND (scan OR cardinality(kept) = k);
        IF num_found < plan.wanted THEN
            scan := true;
        ELSIF NOT fold AND searched <> 'region' THEN
            EXIT;
        ELSE
            round := round + 1;
        END IF;
    END LOOP;
    RETURN QUERY
        SELECT ids[u.n],
               CASE searched WHEN 'defect' THEN (
                   SELECT g.id FROM pgdefect.defect_region g
                   WHERE g.extractor_id = extractor AND g.image_id = ids[u.n] AND g.rank = 1
               ) ELSE regions[u.n] END,
               distances[u.n], counts[u.n]
        FROM unnest(kept) WITH ORDINALITY u(n, rank) ORDER BY u.rank;
END
$$;

COMMENT ON FUNCTION pgdefect.nearest IS
'The k stored images nearest (cosine distance) to a query vector of one extractor, by picture, defect or region, under a filter, near-duplicates folded. Example: SELECT n.* FROM pgdefect.image_embedding e, pgdefect.nearest(''picture'', e.extractor_id, e.embedding::vector, 5, ''{"label": "anomalous"}'') n WHERE e.image_id = 7;';
