-- Question: where on the part do defects lie? (A mould, a gripper or a lamp leaves its marks in
--           one place.)
-- Answer:   the photograph as a map of 8 by 16 fields: how many rejects have their worst place
--           in a field, as a digit (9: nine or more).
-- Set:      category (the one with the most rejects)
\if :{?category} \else
SELECT coalesce((
    SELECT category FROM defect.images WHERE verdict = 'anomalous'
    GROUP BY category ORDER BY count(*) DESC, category LIMIT 1
), '(no rejects)') AS category \gset
\endif

WITH places AS MATERIALIZED (
    SELECT least(7, 8 * (b[2] + b[4] / 2) / i.height) AS y,
           least(15, 16 * (b[1] + b[3] / 2) / i.width) AS x
    FROM defect.images i
    JOIN defect.inspections s USING (inspection_id)
    CROSS JOIN LATERAL string_to_array(s.worst_box, ',') w
    CROSS JOIN LATERAL (SELECT w::integer[] AS b) box
    WHERE i.category = :'category' AND i.verdict = 'anomalous' AND i.retired_at IS NULL
), fields AS (
    SELECT y, x, (SELECT count(*) FROM places p WHERE p.y = f.y AND p.x = f.x) AS rejects
    FROM (SELECT y, x FROM generate_series(0, 7) y, generate_series(0, 15) x) f
)
SELECT string_agg(CASE WHEN rejects = 0 THEN '.' ELSE least(rejects, 9)::text END, ' ' ORDER BY x)
       AS :"category"
FROM fields
GROUP BY y
ORDER BY y;
