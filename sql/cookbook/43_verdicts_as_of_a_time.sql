-- Question: what did we know at a given time?
-- Answer:   the verdicts in force then against those in force now: nothing is overwritten, so
--           any past day can be asked. An image that was inspected only later has no verdict
--           then.
-- Set:      at (now; a time such as '2026-05-04 06:00')
\if :{?at} \else \set at now \endif

WITH was AS (
    SELECT DISTINCT ON (image_id) image_id, verdict
    FROM defect.inspections
    WHERE judged_at <= :'at'::timestamptz
    ORDER BY image_id, inspected_at DESC, judged_at DESC, inspection_id DESC
)
SELECT i.category, coalesce(w.verdict, '(not inspected)') AS verdict_then,
       coalesce(i.verdict, '(not inspected)') AS verdict_now, count(*) AS images
FROM defect.images i
LEFT JOIN was w USING (image_id)
WHERE i.retired_at IS NULL
GROUP BY 1, 2, 3
ORDER BY 1, 2, 3;
