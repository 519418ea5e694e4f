-- What is wrong with the audit trail: entries whose hash is not that of what they say and of the
-- entry before them, numbers that are missing, and detectors that are not as their newest entry
-- says.
--
-- The owner may switch triggers off and rewrite all of it with hashes that fit: only a copy of the
-- newest hash, kept elsewhere, tells that.
CREATE OR REPLACE FUNCTION pgdefect.audit_faults()
RETURNS TABLE (number bigint, fault text)
LANGUAGE sql
STABLE
ROWS 1
SET search_path = pg_catalog
AS $$
    SELECT c.number,
           CASE WHEN c.number <> c.place THEN format('entry %s follows entry %s', c.number, c.previous_number)
                ELSE 'its hash is not that of what it says and of the entry before it' END
    FROM (
        SELECT a.*, row_number() OVER w AS place, coalesce(lag(a.number) OVER w, 0) AS previous_number,
               coalesce(lag(a.hash) OVER w, '') AS previous_hash
        FROM pgdefect.audit a
        WINDOW w AS (ORDER BY a.number)
    ) c
    WHERE c.number <> c.previous_number + 1
       OR c.hash <> pgdefect.audit_hash(c.previous_hash, c.number, c.at, c.who, c.action, c.object, c.before, c.after)
    UNION ALL
    SELECT h.number, 'the newest entry is not the one that was written last'
    FROM pgdefect.audit_head h
    LEFT JOIN LATERAL (SELECT * FROM pgdefect.audit ORDER BY number DESC LIMIT 1) a ON true
    WHERE (coalesce(a.number, 0), coalesce(a.hash, '')) <> (h.number, h.hash)
    UNION ALL
    SELECT n.number, format('detector %s is not as the trail left it: threshold %s, %s%s', d.id, d.threshold,
                            d.state, CASE WHEN d.active THEN ', active' END)
    FROM pgdefect.detector d
    LEFT JOIN LATERAL (
        SELECT a.number, a.after FROM pgdefect.audit a
        WHERE a.object = 'detector ' || d.id AND a.after ? 'active' ORDER BY a.number DESC LIMIT 1
    ) n ON true
    WHERE n.after IS NULL
       OR (n.after->'threshold', n.after->'state', n.after->'active')
          IS DISTINCT FROM (to_jsonb(d.threshold), to_jsonb(d.state), to_jsonb(d.active))
    ORDER BY 1
$$;

COMMENT ON FUNCTION pgdefect.audit_faults IS
'Where the audit trail was tampered with: broken hashes, missing entries, detectors changed past it. Used by pgdefect doctor.';
