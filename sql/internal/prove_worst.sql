-- The largest distances of an image's patches made exact, from distances found with the index.
--
-- bank       the memory bank's id
-- patches    transformed patch embeddings of one image
-- positions  the position found for each in the bank, and its distance: an upper bound of the
-- distances  nearest one's
-- num_worst  how many of the largest distances the image's score is the mean of
--
-- positions and distances come back in the same order. The largest are looked up again, longer
-- and at last past the index, until those that make the score are proven.
CREATE OR REPLACE FUNCTION pgdefect.prove_worst(
    bank bigint,
    patches :"vector_schema".vector[],
    INOUT positions integer[],
    INOUT distances double precision[],
    num_worst integer DEFAULT 1
)
LANGUAGE plpgsql
STABLE
SET search_path = pg_catalog, :"vector_schema"
AS $$
DECLARE
    -- Doubled at each turn: where bounds were good the first two suffice.
    checked_at_once integer := 2;
    -- A longer search finds nearly all nearest vectors that the first one missed, at a fraction
    -- of the time of reading the whole bank.
    checked_ef CONSTANT integer := 100;
    checked boolean[];
    proven boolean[];
    worst integer[];
    doubtful integer[];
    unproven integer[];
    n integer;
    nearer record;
BEGIN
    IF coalesce(cardinality(distances), 0) = 0 THEN
        RETURN;
    END IF;
    checked := array_fill(false, ARRAY[cardinality(distances)]);
    proven := checked;
    LOOP
        worst := ARRAY(
            SELECT u.n FROM unnest(distances) WITH ORDINALITY u(x, n) ORDER BY u.x DESC, u.n
            LIMIT greatest(num_worst, checked_at_once));
        doubtful := ARRAY(SELECT w FROM unnest(worst) w WHERE NOT checked[w]);
        IF doubtful && worst[:num_worst] THEN
            checked_at_once := least(2 * checked_at_once, 64);
            FOREACH n IN ARRAY doubtful LOOP
                checked[n] := true;
            END LOOP;
            FOR nearer IN
                SELECT doubtful[s.patch + 1] AS patch, s.nearest_position, s.distance
                FROM pgdefect.score_patches(
                    bank, ARRAY(SELECT patches[d] FROM unnest(doubtful) d), checked_ef) s
            LOOP
                IF nearer.distance < distances[nearer.patch] THEN
                    positions[nearer.patch] := nearer.nearest_position;
                    distances[nearer.patch] := nearer.distance;
                END IF;
            END LOOP;
        ELSE
            unproven := ARRAY(SELECT w FROM unnest(worst[:num_worst]) w WHERE NOT proven[w]);
            IF cardinality(unproven) = 0 THEN
                RETURN;
            END IF;
            FOREACH n IN ARRAY unproven LOOP
                proven[n] := true;
            END LOOP;
            FOR nearer IN
                SELECT unproven[s.patch + 1] AS patch, s.nearest_position, s.distance
                FROM pgdefect.nearer_patches(
                    bank, ARRAY(SELECT patches[u] FROM unnest(unproven) u),
                    ARRAY(SELECT distances[u] FROM unnest(unproven) u)) s
            LOOP
                positions[nearer.patch] := nearer.nearest_position;
                distances[nearer.patch] := nearer.distance;
            END LOOP;
        END IF;
    END LOOP;
END
$$;

COMMENT ON FUNCTION pgdefect.prove_worst IS
'Makes the largest of the distances found for an image''s patches exact, as many as its score is the mean of, and says which memory-bank vector is the nearest. Used by `pgdefect inspect` and defect.inspect; vectors must be transformed as the bank''s are.';
