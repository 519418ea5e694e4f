-- Every review, newest or not, with its image; none is ever changed, and a mistaken one is
-- withdrawn (defect.withdraw_review).
CREATE OR REPLACE VIEW defect.reviews AS
SELECT v.id AS review_id, c.name AS category, v.image_id, r.path || '/' || i.path AS path,
       v.label, v.defect_type, v.note, v.reviewer, v.created_at,
       w.review_id IS NULL AND row_number() OVER (
           PARTITION BY v.image_id, w.review_id IS NULL ORDER BY v.created_at DESC, v.id DESC) = 1 AS in_force,
       i.label AS dataset_label, i.defect_type AS dataset_defect_type,
       w.created_at AS withdrawn_at, w.withdrawn_by
FROM pgdefect.review v
JOIN pgdefect.image i ON i.id = v.image_id
JOIN pgdefect.image_root r ON r.id = i.root_id
JOIN pgdefect.category c ON c.id = i.category_id
LEFT JOIN pgdefect.review_withdrawal w ON w.review_id = v.id;

COMMENT ON VIEW defect.reviews IS
'What people said of images, each review a row; in_force marks the newest of its image that was not withdrawn, which counts and filters go by. Example: SELECT path, label, defect_type, note, reviewer FROM defect.reviews WHERE in_force ORDER BY created_at DESC;';
