-- Nearest memory-bank vectors of an image's patches, the largest distance among them exact.
--
-- bank       the memory bank's id
-- patches    transformed patch embeddings of one image or a part of one
-- ef         HNSW's candidate list; NULL takes the bank's calibrated value
-- num_worst  how many of the largest distances the image's score is the mean of
--
-- positions and distances are in the order of the patches. Distances from the index are upper
-- bounds, so the largest are looked up again, longer and at last past the index, until the
-- largest of all is proven. Where the score is a mean over several, these are searched for
-- longer and not proven.
CREATE OR REPLACE FUNCTION pgdefect.prove_worst(
    bank bigint,
    patches :"vector_schema".vector[],
    ef integer DEFAULT NULL,
    num_worst integer DEFAULT 1,
    OUT positions integer[],
    OUT distances double precision[]
)
LANGUAGE plpgsql
STABLE
SET search_path = pg_catalog, :"vector_schema"
AS $$
DECLARE
    checked_at_once CONSTANT integer := 8;
    -- A longer search finds nearly all nearest vectors that the first one missed, at a fraction
    -- of the time of reading the whole bank.
    checked_ef CONSTANT integer := 100;
    checked boolean[];
    proven boolean[];
    worst integer[];
    doubtful integer[];
    nearer record;
BEGIN
    SELECT array_agg(s.nearest_position ORDER BY s.patch), array_agg(s.distance ORDER BY s.patch)
    INTO positions, distances FROM pgdefect.score_patches(bank, patches, ef) s;
    IF cardinality(distances) IS DISTINCT FROM cardinality(patches) THEN
        -- The bank has no vectors: it was deleted meanwhile.
        positions := '{}';
        distances := '{}';
        RETURN;
    END IF;
    checked := array_fill(false, ARRAY[cardinality(distances)]);
    proven := checked;
    LOOP
        worst := ARRAY(
            SELECT u.n FROM unnest(distances) WITH ORDINALITY u(x, n) ORDER BY u.x DESC, u.n
            LIMIT greatest(num_worst, checked_at_once));
        doubtful := ARRAY(SELECT n FROM unnest(worst) n WHERE NOT checked[n]);
        IF doubtful && worst[:num_worst] THEN
            FOR nearer IN
                SELECT doubtful[s.patch + 1] AS n, s.nearest_position, s.distance
                FROM pgdefect.score_patches(
                    bank, ARRAY(SELECT patches[n] FROM unnest(doubtful) n), checked_ef) s
            LOOP
                checked[nearer.n] := true;
                IF nearer.distance < distances[nearer.n] THEN
                    positions[nearer.n] := nearer.nearest_position;
                    distances[nearer.n] := nearer.distance;
                END IF;
            END LOOP;
        ELSIF num_worst > 1 OR proven[worst[1]] THEN
            RETURN;
        ELSE
            proven[worst[1]] := true;
            SELECT s.nearest_position, s.distance INTO nearer
            FROM pgdefect.nearer_patches(
                bank, patches[worst[1]:worst[1]], distances[worst[1]:worst[1]]) s;
            IF FOUND THEN
                positions[worst[1]] := nearer.nearest_position;
                distances[worst[1]] := nearer.distance;
            END IF;
        END IF;
    END LOOP;
END
$$;

COMMENT ON FUNCTION pgdefect.prove_worst IS
'The nearest memory-bank vector of each of an image''s patches, and the distances, the largest of them exact. Used by `pgdefect inspect` and defect.inspect; vectors must be transformed as the bank''s are.';
