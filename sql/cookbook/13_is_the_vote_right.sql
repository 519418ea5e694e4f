-- Question: how often is the vote on the defect type right, and what does it confuse?
-- Answer:   a line per known type: how many votes were right, wrong, or refused for want of
--           support; and what a wrong one was mostly taken for.
SELECT category, known_defect_type, sum(images) AS images,
       coalesce(sum(images) FILTER (WHERE probable_defect_type = known_defect_type), 0) AS "right",
       coalesce(sum(images) FILTER (WHERE probable_defect_type <> known_defect_type), 0) AS wrong,
       coalesce(sum(images) FILTER (WHERE probable_defect_type IS NULL), 0) AS refused,
       (array_agg(probable_defect_type ORDER BY images DESC)
            FILTER (WHERE probable_defect_type <> known_defect_type))[1] AS mostly_taken_for
FROM defect.defect_type_confusion
GROUP BY category, known_defect_type
ORDER BY category, known_defect_type;
