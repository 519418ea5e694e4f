-- How many images were rejected each day, by category and split.
--
-- An image counts once, by its first judgement, on the day it was photographed (taken_at), or,
-- where that is not known, on the day of that judgement. So no later inspection, threshold or
-- detector changes a day; defect.rejects counts otherwise, and by hour, station and detector.
-- Days begin at midnight in the session's time zone (SHOW timezone). Retired images and simulated
-- defects are left out.
CREATE OR REPLACE VIEW defect.daily_rejects AS
SELECT n.category, n.split, n.day, n.inspected, n.rejected,
       n.rejected::double precision / n.inspected AS reject_rate,
       defect.rate_interval(n.rejected, n.inspected) AS reject_interval, n.mean_score
FROM (
    SELECT c.name AS category, i.split, coalesce(i.taken_at, s.inspected_at)::date AS day,
           count(*) AS inspected, count(*) FILTER (WHERE s.is_anomalous) AS rejected,
           avg(s.normalized_score) AS mean_score
    FROM pgdefect.inspection s
    JOIN pgdefect.image i ON i.id = s.image_id
    JOIN pgdefect.category c ON c.id = i.category_id
    WHERE s.event = 'inspection' AND i.retired_at IS NULL AND i.split <> 'simulated'
    GROUP BY 1, 2, 3
) n;

COMMENT ON VIEW defect.daily_rejects IS
'Images and rejects of each day in the session''s time zone, by category and split, each image by its first judgement: the rate is a share, its interval the exact 95 % one, mean_score the mean normalized score. Example: SELECT day, inspected, rejected, reject_rate FROM defect.daily_rejects WHERE category = ''leather'' ORDER BY day DESC LIMIT 14;';
