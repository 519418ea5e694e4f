-- Question: does one shift reject more than another?
-- Answer:   where the intervals of two shifts do not overlap, the difference is hardly chance.
--           Any attribute of the images will do: a camera, a mould, a supplier.
-- Set:      attribute (shift)
\if :{?attribute} \else \set attribute shift \endif

SELECT n.category, n.value AS :"attribute", n.inspected, n.rejected,
       round(100.0 * n.rejected / n.inspected, 1) AS percent,
       (SELECT array_agg(round((100 * r)::numeric, 1))
        FROM unnest(defect.rate_interval(n.rejected, n.inspected)) r) AS percent_interval
FROM (
    SELECT category, coalesce(attributes->>:'attribute', '(none)') AS value,
           count(*) AS inspected, count(*) FILTER (WHERE verdict = 'anomalous') AS rejected
    FROM defect.images
    WHERE split = 'production' AND verdict IS NOT NULL
    GROUP BY 1, 2
) n
ORDER BY n.category, percent DESC;
