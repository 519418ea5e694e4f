-- Question: which images would another bank judge differently? Nothing is inspected again:
--           kept patch embeddings are asked (pgdefect inspect --keep-patches).
-- Answer:   images whose verdict would change, the surest change first. Looking at ten of them
--           tells whether the other bank is better.
-- Set:      bank (the newest that has kept patches to judge)
\if :{?bank} \else
SELECT coalesce(max(d.detector_id), 0) AS bank FROM defect.detectors d
WHERE d.kind = 'patchcore'
  AND EXISTS (SELECT FROM defect.kept_patches k WHERE k.extractor_id = d.extractor_id) \gset
\endif

WITH asked AS (
    SELECT k.image_id, k.path FROM defect.kept_patches k
    JOIN defect.detectors d
        ON d.detector_id = :bank AND d.extractor_id = k.extractor_id AND d.category = k.category
), before AS (
    SELECT DISTINCT ON (image_id) image_id, detector_id, verdict, normalized_score
    FROM defect.inspections WHERE detector_id <> :bank
    ORDER BY image_id, inspected_at DESC, judged_at DESC
)
SELECT a.image_id, b.detector_id AS bank_before, b.verdict AS before,
       round(b.normalized_score::numeric, 3) AS score_before,
       s.verdict AS "with the other", round(s.normalized_score::numeric, 3) AS score, a.path
FROM asked a
JOIN before b USING (image_id)
CROSS JOIN LATERAL defect.inspect(a.image_id::text, bank => :bank) s
WHERE s.verdict <> b.verdict
ORDER BY abs(s.normalized_score - b.normalized_score) DESC;
