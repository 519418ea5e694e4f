-- Known defect types against what they probably are by the vote of the most similar images.
--
-- Of images whose newest inspection took a vote. probable_defect_type is NULL where the vote
-- did not have the support it needs. Known is the newest review's word, else the data set's.
CREATE OR REPLACE VIEW defect.defect_type_confusion AS
SELECT n.category, n.known_defect_type, n.probable_defect_type, n.images,
       n.images::double precision / n.total AS rate,
       defect.rate_interval(n.images, n.total) AS rate_interval
FROM (
    SELECT i.category, i.known_defect_type, i.probable_defect_type, count(*) AS images,
           (sum(count(*)) OVER (PARTITION BY i.category, i.known_defect_type))::bigint AS total
    FROM defect.images i
    WHERE i.known_defect_type IS NOT NULL AND i.vote IS NOT NULL AND i.retired_at IS NULL
    GROUP BY i.category, i.known_defect_type, i.probable_defect_type
) n;

COMMENT ON VIEW defect.defect_type_confusion IS
'How many images of each known defect type the vote of their neighbors calls what; NULL: it refused to guess. rate is the share of that type''s images, with its exact 95 % interval. Example: SELECT known_defect_type, probable_defect_type, images FROM defect.defect_type_confusion WHERE category = ''leather'' ORDER BY 1, 3 DESC;';
