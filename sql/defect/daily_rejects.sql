-- How many images were rejected each day, by category and split.
--
-- An image counts once a day, by its last inspection of that day. Days begin at midnight in
-- the session's time zone (SHOW timezone). Retired images and simulated defects are left out.
CREATE OR REPLACE VIEW defect.daily_rejects AS
SELECT n.category, n.split, n.day, n.inspected, n.rejected,
       n.rejected::double precision / n.inspected AS reject_rate,
       defect.rate_interval(n.rejected, n.inspected) AS reject_interval, n.mean_score
FROM (
    SELECT j.category, j.split, j.day, count(*) AS inspected,
           count(*) FILTER (WHERE j.is_anomalous) AS rejected,
           avg(j.normalized_score) AS mean_score
    FROM (
        SELECT DISTINCT ON (s.image_id, s.created_at::date)
               c.name AS category, i.split, s.created_at::date AS day, s.is_anomalous,
               s.normalized_score
        FROM pgdefect.inspection s
        JOIN pgdefect.image i ON i.id = s.image_id
        JOIN pgdefect.category c ON c.id = i.category_id
        WHERE i.retired_at IS NULL AND i.split <> 'simulated'
        ORDER BY s.image_id, s.created_at::date, s.created_at DESC, s.id DESC
    ) j
    GROUP BY j.category, j.split, j.day
) n;

COMMENT ON VIEW defect.daily_rejects IS
'Images inspected and rejected each day of the session''s time zone, by category and split: the rate is a share, its interval the exact 95 % one, mean_score the mean normalized score. Example: SELECT day, inspected, rejected, reject_rate FROM defect.daily_rejects WHERE category = ''leather'' ORDER BY day DESC LIMIT 14;';
