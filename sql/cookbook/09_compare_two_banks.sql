-- Question: of two banks, which one is right where they differ, on the same images?
-- Answer:   "only the second" in a line with label anomalous are defects that only the second
--           one finds; with label normal, good parts that only it rejects.
-- Set:      first, second (the two newest detectors of one category)
\if :{?second} \else
SELECT coalesce(max(detector_id), 0) AS second FROM defect.inspections \gset
\endif
\if :{?first} \else
SELECT coalesce(max(a.detector_id), 0) AS first
FROM defect.detectors a JOIN defect.detectors b ON b.detector_id = :second
WHERE a.category = b.category AND a.detector_id < b.detector_id \gset
\endif

WITH judged AS (
    SELECT DISTINCT ON (detector_id, image_id) detector_id, image_id, known_label, verdict
    FROM defect.inspections
    WHERE detector_id IN (:first, :second)
    ORDER BY detector_id, image_id, inspected_at DESC, judged_at DESC
)
SELECT coalesce(a.known_label, 'unknown') AS known_label, count(*) AS images,
       count(*) FILTER (WHERE a.verdict = 'anomalous' AND b.verdict = 'anomalous') AS both_reject,
       count(*) FILTER (WHERE a.verdict = 'normal' AND b.verdict = 'normal') AS neither,
       count(*) FILTER (WHERE a.verdict = 'anomalous' AND b.verdict = 'normal') AS only_the_first,
       count(*) FILTER (WHERE a.verdict = 'normal' AND b.verdict = 'anomalous') AS only_the_second
FROM judged a
JOIN judged b ON b.image_id = a.image_id AND b.detector_id = :second
WHERE a.detector_id = :first
GROUP BY a.known_label
ORDER BY 1;
