-- Question: which thresholds has each detector had, who set them, and what would each do to the
--           labeled test images?
-- Answer:   the newest first. A change that traded many false rejects for few escapes is seen
--           at once.
SELECT t.category, t.detector_id, round(t.threshold::numeric, 5) AS threshold, t.rule_name,
       t.set_by, CASE WHEN t.in_force THEN 'yes' ELSE '' END AS in_force,
       w.false_rejects || ' of ' || w.normal_images AS false_rejects,
       w.escapes || ' of ' || w.anomalous_images AS escapes
FROM defect.thresholds t
CROSS JOIN LATERAL defect.what_if(detector => t.detector_id, threshold => t.threshold) w
ORDER BY t.since DESC, t.threshold_id DESC;
