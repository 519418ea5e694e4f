-- Question: how good is each detector on the labeled test images, and which defect types does it
--           find?
-- Answer:   AUROC is the chance that a defect scores higher than a good part, whatever the
--           threshold; found is what the present threshold finds of a type.
WITH judged AS (
    SELECT DISTINCT ON (s.detector_id, s.image_id)
           s.category, s.detector_id, s.known_defect_type, s.raw_score > d.threshold AS found
    FROM defect.inspections s
    JOIN defect.detectors d USING (detector_id)
    JOIN defect.images i ON i.image_id = s.image_id AND i.split = 'test' AND i.retired_at IS NULL
    WHERE s.known_label = 'anomalous'
    ORDER BY s.detector_id, s.image_id, s.inspected_at DESC, s.judged_at DESC
)
SELECT category, detector_id AS detector, round(defect.image_auroc(detector_id)::numeric, 3) AS auroc,
       coalesce(known_defect_type, '(not named)') AS defect_type,
       count(*) FILTER (WHERE found) || ' of ' || count(*) AS found
FROM judged
GROUP BY category, detector_id, known_defect_type
ORDER BY category, detector_id, defect_type;
