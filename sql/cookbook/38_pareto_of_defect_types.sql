-- Question: which few types of defect make most of the rejects?
-- Answer:   a Pareto list: types by number of rejects, known or else probable, and the share that
--           they make up together with those above. Begin at the top.
-- Set:      split (production)
\if :{?split} \else \set split production \endif

SELECT category, type, rejects,
       round(100.0 * rejects / sum(rejects) OVER w, 1) AS percent,
       round(100.0 * sum(rejects) OVER (w ORDER BY rejects DESC, type) / sum(rejects) OVER w, 1)
           AS together
FROM (
    SELECT category, coalesce(known_defect_type, probable_defect_type, '(unknown)') AS type,
           count(*) AS rejects
    FROM defect.images
    WHERE split = :'split' AND verdict = 'anomalous' AND retired_at IS NULL
    GROUP BY 1, 2
) n
WINDOW w AS (PARTITION BY category)
ORDER BY category, rejects DESC, type;
