-- What images are known to be against what the newest inspection said of them.
--
-- Known is the newest review's word, else the data set's. Images that a detector learned from
-- are in split train: look at the others. Retired images and simulated defects are left out.
CREATE OR REPLACE VIEW defect.confusion AS
SELECT n.category, n.split, n.known_label, n.verdict, n.images,
       n.images::double precision / n.total AS rate,
       defect.rate_interval(n.images, n.total) AS rate_interval
FROM (
    SELECT i.category, i.split, i.known_label, i.verdict, count(*) AS images,
           (sum(count(*)) OVER (PARTITION BY i.category, i.split, i.known_label))::bigint AS total
    FROM defect.images i
    WHERE i.known_label IS NOT NULL AND i.verdict IS NOT NULL AND i.retired_at IS NULL
    GROUP BY i.category, i.split, i.known_label, i.verdict
) n;

COMMENT ON VIEW defect.confusion IS
'How many images of each known label got each verdict; rate is the share of that label''s images, with its exact 95 % interval: anomalous images judged normal are escapes, the other way round false rejects. Example: SELECT known_label, verdict, images, rate FROM defect.confusion WHERE category = ''leather'' AND split = ''test'';';
