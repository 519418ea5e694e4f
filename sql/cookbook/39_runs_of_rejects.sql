-- Question: where did rejects come one after the other?
-- Answer:   the longest runs of rejected photographs, in the order they were taken, of each line.
--           chance is that of a run as long, somewhere, were rejects spread evenly: a small one
--           means a tool, a batch or a lamp, and not single parts.
-- Set:      attribute (line), n (5)
\if :{?attribute} \else \set attribute line \endif
\if :{?n} \else \set n 5 \endif

WITH photographs AS (
    SELECT category, coalesce(attributes->>:'attribute', '(none)') AS value, image_id,
           coalesce(taken_at, inspected_at) AS at, verdict = 'anomalous' AS rejected
    FROM defect.images
    WHERE split = 'production' AND verdict IS NOT NULL AND retired_at IS NULL
), numbered AS (
    SELECT p.*, row_number() OVER w - row_number() OVER (PARTITION BY category, value, rejected
                                                         ORDER BY at, image_id) AS run,
           count(*) OVER (PARTITION BY category, value) AS photographs,
           avg(rejected::int) OVER (PARTITION BY category, value)::double precision AS rate
    FROM photographs p
    WINDOW w AS (PARTITION BY category, value ORDER BY at, image_id)
)
SELECT category, value AS :"attribute", count(*) AS rejects_in_a_row, min(at) AS first,
       max(at) AS last, min(photographs) AS of_photographs,
       -- Feller's approximation for runs of successes.
       round((1 - exp(-min(photographs) * (1 - min(rate)) * power(min(rate), count(*))))::numeric, 4)
           AS chance
FROM numbered
WHERE rejected
GROUP BY category, value, run
ORDER BY rejects_in_a_row DESC, category, first
LIMIT :n;
