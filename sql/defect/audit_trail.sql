-- Who changed what: thresholds, activations, retirements, reviews, deletions, restores, logins.
--
-- Only ever added to, at the end of each transaction; an entry's hash is of what it says and of the
-- hash before it, so that `pgdefect doctor` sees an entry that was changed or removed.
CREATE OR REPLACE VIEW defect.audit_trail AS
SELECT a.number, a.at, a.who, a.action, a.object, a.before, a.after, a.hash
FROM pgdefect.audit a;

COMMENT ON VIEW defect.audit_trail IS
'Every change of thresholds, detectors in use, reviews, retirements and logins, and every deletion and restore: who, when, what, before and after. Example: SELECT at, who, action, object, before->''threshold'' AS before, after->''threshold'' AS after FROM defect.audit_trail WHERE action LIKE ''%threshold%'' ORDER BY number DESC;';
