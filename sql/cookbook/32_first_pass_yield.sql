-- Question: what is the first-pass yield of each line, and what does re-inspection give back?
-- Answer:   first_pass is the share of photographs that passed at their first judgement, in
--           percent with its 95 % interval; final that by the verdict in force now, where a
--           review counts before it.
-- Set:      attribute (line)
\if :{?attribute} \else \set attribute line \endif

WITH first AS (
    SELECT category, coalesce("group", '(none)') AS value,
           sum(inspected)::bigint AS inspected, sum(inspected - rejected)::bigint AS passed
    FROM defect.rejects(per => 'all', by => :'attribute', split => 'production')
    GROUP BY 1, 2
), now AS (
    SELECT category, coalesce(attributes->>:'attribute', '(none)') AS value,
           count(*) FILTER (WHERE coalesce(known_label, verdict) = 'normal') AS passed
    FROM defect.images
    WHERE split = 'production' AND verdict IS NOT NULL AND retired_at IS NULL
    GROUP BY 1, 2
)
SELECT f.category, f.value AS :"attribute", f.inspected,
       round(100.0 * f.passed / f.inspected, 1) AS first_pass,
       (SELECT array_agg(round((100 * r)::numeric, 1))
        FROM unnest(defect.rate_interval(f.passed, f.inspected)) r) AS first_pass_interval,
       round(100.0 * n.passed / f.inspected, 1) AS final
FROM first f
JOIN now n USING (category, value)
ORDER BY f.category, first_pass, f.value;
