-- What one kind of search compares: the table its vectors lie in, and what their index is on.
--
-- searched   picture: image embeddings; defect: one defect embedding for each image; region:
--            one for each anomalous region
-- extractor  the extractor's id; vectors of two extractors never meet
-- query      SQL text for the vector to compare with
--
-- relation holds the vectors, `dim` long, and is called e in what follows; partition is the
-- extractor's part of it. distance is SQL text for the cosine distance as the index has it.
-- ef_search is what `pgdefect recall-check --fix` stored, else 100.
--
-- Same rule in Python:
--   pgdefect.core.distance.indexed_type
CREATE OR REPLACE FUNCTION pgdefect.searched_vectors(
    searched text,
    extractor bigint,
    query text DEFAULT '$1',
    OUT relation text,
    OUT partition text,
    OUT dim integer,
    OUT vector_type text,
    OUT distance text,
    OUT ef_search integer
)
LANGUAGE plpgsql
STABLE
SET search_path = pg_catalog
AS $$
BEGIN
    SELECT kind.relation INTO relation
    FROM (VALUES ('picture', 'image_embedding'),
                 ('defect', 'defect_embedding'),
                 ('region', 'defect_region')) kind (searched, relation)
    WHERE kind.searched = searched_vectors.searched;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no search by %', quote_nullable(searched)
            USING ERRCODE = 'PD400', HINT = 'Search by picture, defect or region.';
    END IF;
    SELECT CASE searched WHEN 'picture' THEN x.embedding_dim ELSE s.embedding_dim END INTO dim
    FROM pgdefect.extractor x LEFT JOIN pgdefect.defect_space s ON s.extractor_id = x.id
    WHERE x.id = extractor;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no extractor %', extractor USING ERRCODE = 'PD404';
    END IF;
    partition := relation || '_' || extractor;
    IF dim IS NULL OR to_regclass('pgdefect.' || partition) IS NULL THEN
        RAISE EXCEPTION 'extractor % has made no defect embeddings yet', extractor
            USING ERRCODE = 'PD404',
                  HINT = 'Train the category again, then run pgdefect embed CATEGORY; or search by picture.';
    END IF;
    -- A halfvec index would round once more.
    vector_type := format('%s(%s)', CASE WHEN dim <= 2000 THEN 'vector' ELSE 'halfvec' END, dim);
    distance := format('e.embedding::%1$s <=> %2$s::%1$s', vector_type, query);
    SELECT s.ef_search INTO ef_search FROM pgdefect.search_setting s
    WHERE s.extractor_id = extractor AND s.searched = searched_vectors.searched;
    ef_search := coalesce(ef_search, 100);
END
$$;

COMMENT ON FUNCTION pgdefect.searched_vectors IS
'Where the vectors of one kind of search (picture, defect, region) lie and the distance their index is on. Used by the functions that search. Example: SELECT relation, dim, ef_search FROM pgdefect.searched_vectors(''picture'', 1);';
