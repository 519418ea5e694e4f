-- How a filtered search will go: along the index, or over all rows that pass the filter.
--
-- Walking the index visits about wanted / (share of rows that pass) vectors, ef_search at
-- least, until it has what is wanted; a scan compares every row that passes. Per vector a walk
-- costs `walk_cost` times what a scan does: with a million vectors of 152 dimensions 0.045 ms
-- against 0.002 to 0.005. How many rows pass is the planner's estimate, which is too low where
-- columns hang together: a scan chosen on its word may read at_most rows and is given up for
-- the index when there are more. count says beforehand whether there are.
--
-- round 1, 2, … want four times as many each: near-duplicates took the places of others.
-- at_least rows are known to pass, from a scan that was given up; the next one may read on.
--
-- way is index or exact; scanned and walked are rows of the table, estimated unless counted.
-- condition is what the filter amounts to.
CREATE OR REPLACE FUNCTION pgdefect.search_plan(
    searched text,
    extractor bigint,
    k integer,
    filter jsonb DEFAULT '{}',
    exact boolean DEFAULT false,
    fold boolean DEFAULT true,
    round integer DEFAULT 0,
    at_least bigint DEFAULT 0,
    count boolean DEFAULT false,
    OUT way text,
    OUT table_rows bigint,
    OUT scanned bigint,
    OUT counted boolean,
    OUT walked bigint,
    OUT walk_cost integer,
    OUT at_most bigint,
    OUT wanted bigint,
    OUT ef_search integer,
    OUT partition text,
    OUT condition text
)
LANGUAGE plpgsql
-- Not stable: EXPLAIN counts as a command.
VOLATILE
SET search_path = pg_catalog
AS $$
DECLARE
    v record := pgdefect.searched_vectors(searched, extractor);
    passing text;
    plan json;
BEGIN
    condition := pgdefect.search_condition(filter);
    partition := v.partition;
    walk_cost := 15;
    -- An image may show many times among regions, a part or file among images.
    wanted := CASE WHEN fold OR searched = 'region' THEN (2 * k::bigint + 10) * 4 ^ round ELSE k END;
    -- Checked for ten neighbors; more take a longer list of candidates.
    ef_search := least(1000, greatest(v.ef_search * greatest(1, k / 10.0), wanted));
    passing := format('FROM pgdefect.%I e JOIN pgdefect.image i ON i.id = e.image_id WHERE e.extractor_id = %s AND %s',
                      v.relation, extractor, condition);
    EXECUTE format('EXPLAIN (FORMAT JSON) SELECT FROM pgdefect.%I WHERE extractor_id = %s', v.relation, extractor)
        INTO plan;
    table_rows := greatest(at_least, (plan -> 0 -> 'Plan' ->> 'Plan Rows')::bigint);
    EXECUTE 'EXPLAIN (FORMAT JSON) SELECT ' || passing INTO plan;
    scanned := least(table_rows, greatest(at_least, (plan -> 0 -> 'Plan' ->> 'Plan Rows')::bigint));
    counted := false;
    LOOP
        walked := least(table_rows, greatest(ef_search, wanted * table_rows / greatest(scanned, 1)));
        way := CASE WHEN exact OR scanned <= walk_cost * walked THEN 'exact' ELSE 'index' END;
        at_most := CASE WHEN way = 'exact' AND NOT (exact OR counted OR at_least > 0)
                        THEN 4 * walk_cost * walked END;
        EXIT WHEN NOT count OR at_most IS NULL;
        EXECUTE format('SELECT count(*) FROM (SELECT %s LIMIT %s) c', passing, at_most) INTO scanned;
        counted := true;
    END LOOP;
END
$$;

COMMENT ON FUNCTION pgdefect.search_plan IS
'Whether a filtered search walks the index or scans what passes the filter, and the estimates behind it: `pgdefect search --explain`. Example: SELECT way, scanned, walked FROM pgdefect.search_plan(''picture'', 1, 10, ''{"label": "anomalous"}'');';
