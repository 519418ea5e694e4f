-- Normal training images that scored far outside the rest of their kind when a detector was
-- trained, and that nobody has reviewed since. No threshold is chosen from them.
--
-- in_bank: the detector's memory bank holds vectors of the image, so that what resembles it
-- scores low: right for a rare normal part, and an escape for a defect.
CREATE OR REPLACE VIEW defect.outliers AS
SELECT h.detector_id, h.image_id, c.name AS category, r.path || '/' || i.path AS path,
       h.raw_score, d.active, d.kind,
       EXISTS (SELECT FROM pgdefect.memory_bank_patch p
               WHERE p.bank_id = h.detector_id AND p.image_id = h.image_id) AS in_bank
FROM pgdefect.holdout_score h
JOIN pgdefect.detector d ON d.id = h.detector_id
JOIN pgdefect.image i ON i.id = h.image_id
JOIN pgdefect.image_root r ON r.id = i.root_id
JOIN pgdefect.category c ON c.id = i.category_id
WHERE h.outlier AND i.reviewed_label IS NULL AND i.retired_at IS NULL;

COMMENT ON VIEW defect.outliers IS
'Normal training images that scored far outside the rest when a detector was trained, unreviewed: another product, a defect, or something rare that is right. No threshold is chosen from them; in_bank says whether the bank learned them. Example: SELECT category, image_id, raw_score, in_bank, path FROM defect.outliers WHERE active ORDER BY raw_score DESC;';
