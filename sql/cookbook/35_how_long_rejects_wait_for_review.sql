-- Question: how long do rejects wait for a review, and how many wait still?
-- Answer:   hours from the inspection to the first review after it: the median, and the time
--           within which nine of ten were reviewed; oldest is how long the oldest one without a
--           review has waited.
SELECT i.category, count(*) AS rejects, count(r.at) AS reviewed,
       count(*) FILTER (WHERE i.reviewed_label IS NULL) AS waiting,
       round((percentile_cont(0.5) WITHIN GROUP (ORDER BY r.hours))::numeric, 2) AS median_hours,
       round((percentile_cont(0.9) WITHIN GROUP (ORDER BY r.hours))::numeric, 2) AS hours_of_nine_in_ten,
       date_trunc('minute', max(now() - i.inspected_at) FILTER (WHERE i.reviewed_label IS NULL))
           AS oldest
FROM defect.images i
LEFT JOIN LATERAL (
    SELECT min(v.created_at) AS at,
           extract(epoch FROM min(v.created_at) - i.inspected_at) / 3600 AS hours
    FROM defect.reviews v
    WHERE v.image_id = i.image_id AND v.created_at >= i.inspected_at
) r ON true
WHERE i.verdict = 'anomalous' AND i.split = 'production' AND i.retired_at IS NULL
GROUP BY i.category
ORDER BY i.category;
