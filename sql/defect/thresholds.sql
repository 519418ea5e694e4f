-- Every threshold a detector has had: when, by whom, and the rule that made it.
CREATE OR REPLACE VIEW defect.thresholds AS
SELECT t.id AS threshold_id, c.name AS category, t.detector_id, d.kind, d.version, d.active,
       t.threshold, t.score_center, t.rule->>'rule' AS rule_name, t.rule, t.set_by,
       t.created_at AS since,
       lead(t.created_at) OVER later AS until,
       lead(t.id) OVER later IS NULL AS in_force
FROM pgdefect.detector_threshold t
JOIN pgdefect.detector d ON d.id = t.detector_id
JOIN pgdefect.category c ON c.id = d.category_id
WINDOW later AS (PARTITION BY t.detector_id ORDER BY t.id);

COMMENT ON VIEW defect.thresholds IS
'Every threshold of every detector with the rule that made it, who set it, and from when until when it was in force; until is NULL for the present one. Example: SELECT threshold, rule_name, set_by, since FROM defect.thresholds WHERE category = ''leather'' ORDER BY since;';
