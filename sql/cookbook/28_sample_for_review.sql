-- Question: which photographs should be reviewed to know the true rates? A random sample,
--           stratified by score.
-- Answer:   as many from each tenth of the scores, chosen by chance and again the same ones for
--           the same seed. weight is how many photographs each stands for: a sum of weights
--           estimates a count. (The review queue is no sample: it is where review helps most.)
-- Set:      each (3), seed (1), split (production)
\if :{?each} \else \set each 3 \endif
\if :{?seed} \else \set seed 1 \endif
\if :{?split} \else \set split production \endif

WITH strata AS (
    SELECT category, image_id, normalized_score, verdict, path,
           least(floor(10 * normalized_score), 9) AS stratum
    FROM defect.images
    WHERE split = :'split' AND verdict IS NOT NULL AND retired_at IS NULL
), drawn AS (
    SELECT s.*, count(*) OVER (PARTITION BY category, stratum) AS size,
           row_number() OVER (PARTITION BY category, stratum
                              ORDER BY md5(image_id::text || :'seed'), image_id) AS place
    FROM strata s
)
SELECT category, image_id, round(normalized_score::numeric, 3) AS score, verdict,
       round(size::numeric / least(size, :each), 2) AS weight, path
FROM drawn
WHERE place <= :each
ORDER BY category, stratum, place;
