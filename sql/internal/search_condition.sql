-- SQL text that is true of the images a search may return; the image is called i.
--
-- filter is a JSON object; a key that is absent or null does not restrict:
--   category, label, defect_type, split, part     equal to
--   has_defect_type                               true: the defect type is known
--   since, until                                  stored at or after, stored before
--   attributes                                    an object that the image's attributes contain
--   except_images                                 ids; copies of their files are left out too,
--                                                 unless own_copies is true
--   except_part                                   true: no image of the parts of except_images
--   except_sha256                                 digests of files to leave out
--   simulated                                     true: images with simulated defects too
-- label and defect type are the known ones: a review's word before the data set's.
-- Retired images and categories never pass.
--
-- Same rule in Python:
--   pgdefect.core.words.SPLITS
--   pgdefect.core.words.LABELS
CREATE OR REPLACE FUNCTION pgdefect.search_condition(filter jsonb) RETURNS text
LANGUAGE plpgsql
STABLE
SET search_path = pg_catalog
AS $$
DECLARE
    w jsonb := jsonb_strip_nulls(coalesce(filter, '{}') - 'attributes');
    conditions text[] := ARRAY['i.retired_at IS NULL'];
    digests text[];
    unknown text;
BEGIN
    SELECT string_agg(quote_literal(key), ', ' ORDER BY key) INTO unknown FROM jsonb_object_keys(w) key
    WHERE key NOT IN ('category', 'label', 'defect_type', 'has_defect_type', 'split', 'part', 'since',
                      'until', 'except_images', 'except_part', 'except_sha256', 'simulated', 'own_copies');
    IF unknown IS NOT NULL THEN
        RAISE EXCEPTION 'a search has no filter called %', unknown USING ERRCODE = 'PD400';
    ELSIF w ->> 'label' NOT IN ('normal', 'anomalous') THEN
        RAISE EXCEPTION 'there is no label %', quote_literal(w ->> 'label')
            USING ERRCODE = 'PD400', HINT = 'Labels are normal and anomalous.';
    ELSIF w ->> 'split' NOT IN ('train', 'test', 'production', 'simulated') THEN
        RAISE EXCEPTION 'there is no split %', quote_literal(w ->> 'split')
            USING ERRCODE = 'PD400', HINT = 'Splits are train, test, production and simulated.';
    ELSIF jsonb_typeof(filter -> 'attributes') NOT IN ('object', 'null') THEN
        RAISE EXCEPTION 'attributes to look for must be a JSON object, not %', filter -> 'attributes'
            USING ERRCODE = 'PD400', HINT = 'For example {"line": 3}.';
    END IF;
    -- Looked up here: the planner cannot foresee how many images a joined category leaves.
    IF w ? 'category' OR EXISTS (SELECT FROM pgdefect.category c WHERE c.retired_at IS NOT NULL) THEN
        conditions := conditions || (
            SELECT CASE count(*) WHEN 0 THEN 'false'
                                 WHEN 1 THEN format('i.category_id = %s', min(c.id))
                                 ELSE format('i.category_id = ANY (%L)', array_agg(c.id)) END
            FROM pgdefect.category c
            WHERE c.retired_at IS NULL AND (NOT w ? 'category' OR c.name = w ->> 'category'));
    END IF;
    IF w ? 'label' THEN
        conditions := conditions || format('i.known_label = %L', w ->> 'label');
    END IF;
    IF w ? 'defect_type' THEN
        conditions := conditions || format('i.known_defect_type = %L', w ->> 'defect_type');
    END IF;
    IF (w ->> 'has_defect_type')::boolean THEN
        conditions := conditions || 'i.known_defect_type IS NOT NULL'::text;
    END IF;
    IF w ? 'split' THEN
        conditions := conditions || format('i.split = %L', w ->> 'split');
    ELSIF NOT coalesce((w ->> 'simulated')::boolean, false) THEN
        conditions := conditions || 'i.split <> ''simulated'''::text;
    END IF;
    IF w ? 'part' THEN
        conditions := conditions || format('i.group_name = %L', w ->> 'part');
    END IF;
    IF w ? 'since' THEN
        conditions := conditions || format('i.created_at >= %L', (w ->> 'since')::timestamptz);
    END IF;
    IF w ? 'until' THEN
        conditions := conditions || format('i.created_at < %L', (w ->> 'until')::timestamptz);
    END IF;
    IF jsonb_typeof(filter -> 'attributes') = 'object' AND filter -> 'attributes' <> '{}' THEN
        conditions := conditions || format('i.attributes @> %L', filter -> 'attributes');
    END IF;
    IF w ? 'except_images' THEN
        conditions := conditions || format('i.id <> ALL (%L)', ARRAY(
            SELECT id::bigint FROM jsonb_array_elements_text(w -> 'except_images') id));
    END IF;
    digests := ARRAY(
        SELECT jsonb_array_elements_text(w -> 'except_sha256')
        UNION
        SELECT q.sha256 FROM jsonb_array_elements_text(w -> 'except_images') u(id)
        JOIN pgdefect.image q ON q.id = u.id::bigint
        WHERE (w ->> 'own_copies')::boolean IS NOT TRUE);
    IF digests <> '{}' THEN
        conditions := conditions || format('i.sha256 <> ALL (%L)', digests);
    END IF;
    IF (w ->> 'except_part')::boolean THEN
        conditions := conditions || ARRAY(
            SELECT DISTINCT format('(i.group_name IS DISTINCT FROM %L OR i.category_id <> %s)',
                                   q.group_name, q.category_id)
            FROM jsonb_array_elements_text(w -> 'except_images') u(id)
            JOIN pgdefect.image q ON q.id = u.id::bigint
            WHERE q.group_name IS NOT NULL);
    END IF;
    RETURN array_to_string(conditions, ' AND ');
END
$$;

COMMENT ON FUNCTION pgdefect.search_condition IS
'SQL text of what a search filter, a JSON object, lets through. Used by the functions that search. Example: SELECT pgdefect.search_condition(''{"label": "anomalous"}'');';
