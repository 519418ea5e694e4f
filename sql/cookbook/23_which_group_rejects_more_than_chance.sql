-- Question: which shift rejects more than chance can explain?
-- Answer:   p is the chance that a shift like all the others comes out as different as this one
--           (Fisher's exact test, two-sided, of each against the rest together). With ten shifts
--           one of them has p below 0.1 by chance alone: p_of_all is p times their number.
-- Set:      attribute (shift; any attribute of the photographs, or station, or detector)
\if :{?attribute} \else \set attribute shift \endif

WITH counted AS (
    SELECT category, coalesce("group", '(none)') AS value,
           sum(inspected)::bigint AS inspected, sum(rejected)::bigint AS rejected
    FROM defect.rejects(per => 'all', by => :'attribute', split => 'production')
    GROUP BY 1, 2
), compared AS (
    SELECT c.*, sum(inspected) OVER w - inspected AS others, sum(rejected) OVER w - rejected AS others_rejected,
           count(*) OVER w AS groups
    FROM counted c
    WINDOW w AS (PARTITION BY category)
), tested AS (
    SELECT c.*, defect.fisher_p(rejected, inspected, others_rejected::bigint, others::bigint) AS p
    FROM compared c
)
SELECT category, value AS :"attribute", inspected, rejected,
       round(100.0 * rejected / inspected, 1) AS percent,
       round(100.0 * others_rejected / nullif(others, 0), 1) AS percent_of_others,
       round(p::numeric, 4) AS p, round(least(1, p * groups)::numeric, 4) AS p_of_all
FROM tested
ORDER BY category, p, value;
