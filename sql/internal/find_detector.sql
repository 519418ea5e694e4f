-- The detector a threshold is asked of: the category's active one, or the one named. Where one
-- of each kind is active it is PatchCore's.
CREATE OR REPLACE FUNCTION pgdefect.find_detector(category text, detector bigint DEFAULT NULL)
RETURNS bigint
LANGUAGE plpgsql
STABLE
SET search_path = pg_catalog
AS $$
DECLARE
    found bigint;
BEGIN
    IF NOT EXISTS (SELECT FROM pgdefect.category c WHERE c.name = find_detector.category) THEN
        RAISE EXCEPTION 'there is no category %', coalesce(quote_literal(category), 'NULL')
            USING ERRCODE = 'PD404', HINT = 'SELECT category FROM defect.categories lists them.';
    END IF;
    SELECT d.id INTO found
    FROM pgdefect.detector d JOIN pgdefect.category c ON c.id = d.category_id
    WHERE c.name = find_detector.category
      AND CASE WHEN detector IS NULL THEN d.active ELSE d.id = detector END
    ORDER BY pgdefect.kind_preference(d.kind)
    LIMIT 1;
    IF found IS NULL AND detector IS NOT NULL THEN
        RAISE EXCEPTION 'category % has no detector %', quote_literal(category), detector
            USING ERRCODE = 'PD404', HINT = 'SELECT detector_id FROM defect.thresholds lists them.';
    ELSIF found IS NULL THEN
        RAISE EXCEPTION 'category % has no active detector', quote_literal(category)
            USING ERRCODE = 'PD404',
                  HINT = format('Train one with: pgdefect train %s', pgdefect.shell_word(category)) || coalesce((
                      SELECT format(', or make detector %s active again with pgdefect activate', max(d.id))
                      FROM pgdefect.detector d JOIN pgdefect.category c ON c.id = d.category_id
                      WHERE c.name = find_detector.category HAVING count(*) > 0), '');
    END IF;
    RETURN found;
END
$$;

COMMENT ON FUNCTION pgdefect.find_detector IS
'The id of a category''s active detector (PatchCore''s where one of each kind is), or of the one named if it is the category''s. Used by defect.set_threshold.';
