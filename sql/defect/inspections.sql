-- Every inspection there was, newest detector or not, with its image; none of simulated defects.
--
-- An inspection is an event: added once, never changed. event says which: inspection (the first
-- of its image), re-inspection (a later look, by the same detector or another) or re-judgement
-- (stored scores under another threshold). in_force marks the one whose verdict counts now: the
-- newest look at the image, under the threshold last applied to it.
CREATE OR REPLACE VIEW defect.inspections AS
SELECT s.id AS inspection_id, c.name AS category, s.image_id, s.detector_id, d.version,
       CASE WHEN s.is_anomalous THEN 'anomalous' ELSE 'normal' END AS verdict,
       i.label, i.defect_type, s.raw_score, s.normalized_score, s.threshold,
       s.worst_row, s.worst_col,
       defect.patch_box(s.worst_row, s.worst_col, e.rows, e.cols, i.height, i.width,
                        e.preprocessing) AS worst_box,
       s.search, r.path || '/' || i.path AS path, s.created_at, d.kind,
       i.known_label, i.known_defect_type, s.vote, s.probable_defect_type,
       s.event, i.taken_at, s.inspected_at, s.created_at AS judged_at, s.station, s.event_key,
       NOT EXISTS (
           SELECT FROM pgdefect.inspection newer
           WHERE newer.image_id = s.image_id
             AND (newer.inspected_at, newer.created_at, newer.id)
                 > (s.inspected_at, s.created_at, s.id)) AS in_force,
       i.split, i.group_name AS part
FROM pgdefect.inspection s
JOIN pgdefect.image i ON i.id = s.image_id
JOIN pgdefect.image_root r ON r.id = i.root_id
JOIN pgdefect.category c ON c.id = i.category_id
JOIN pgdefect.detector d ON d.id = s.detector_id
JOIN pgdefect.extractor e ON e.id = d.extractor_id
WHERE i.split <> 'simulated';

COMMENT ON VIEW defect.inspections IS
'What each detector said of each image and when, under the threshold in force then: events that are added and never changed; in_force marks the one that counts now. worst_box is x,y,width,height in pixels; kind is patchcore or efficient_ad; vote counts the defect types among the k most similar stored images, probable_defect_type is the one with enough of them. Example: SELECT category, verdict, count(*) FROM defect.inspections WHERE in_force GROUP BY 1, 2 ORDER BY 1, 2;';
