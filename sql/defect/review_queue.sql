-- Which images a person should look at first: those where a review would help most.
--
-- Four reasons, each between 0 and 1:
--   near_threshold  not reviewed and without a label, and the score lies near the threshold:
--                   1 - 4 |normalized_score - 0.5|, so 1 at the threshold, 0 at the score of
--                   an ordinary normal image
--   vote_doubt      its defect type is not known, and its neighbors disagree: 1 - support / k;
--                   NULL where no neighbor had a type to vote for
--   novelty         judged anomalous, type not known, and far from everything known: cosine
--                   distance of its defect embedding to the nearest image of the category
--                   whose defect type is known (the 50 newest of each type stand for it); 1
--                   where there is none. The reason says whether it is farther than the limit of
--                   its vote, within which known defects of a type lie from one another
--   contradiction   the detector is sure of the opposite of its label: 4 |score - 0.5|
-- priority is 1 - (1 - near_threshold) (1 - vote_doubt) (1 - novelty) (1 - contradiction): one
-- good reason is enough, and several add up. Images with no reason are left out.
--
-- Outliers among the images that an active detector was trained on (defect.outliers) come before
-- all others, with priority 1: one of them that is wrong can hide every defect of its kind.
--
-- A reviewed image is left out until a later inspection says otherwise than the one that the
-- reviewer saw, and otherwise than the review. The distances are exact: their cost grows with
-- the rejects waiting times the defect types known.
CREATE OR REPLACE VIEW defect.review_queue AS
WITH known AS MATERIALIZED (
    SELECT n.category_id, n.extractor_id, n.image_id, n.embedding
    FROM (
        SELECT i.category_id, e.extractor_id, e.image_id, e.embedding,
               row_number() OVER (PARTITION BY i.category_id, e.extractor_id, i.known_defect_type
                                  ORDER BY e.image_id DESC) AS place
        FROM pgdefect.image i
        JOIN pgdefect.defect_embedding e ON e.image_id = i.id
        WHERE i.known_defect_type IS NOT NULL AND i.retired_at IS NULL
          AND i.split <> 'simulated'
    ) n
    WHERE n.place <= 50
), waiting AS (
    SELECT i.id AS image_id, i.category_id, c.name AS category, r.path || '/' || i.path AS path,
           i.split, i.known_label, i.known_defect_type, s.id AS inspection_id, s.is_anomalous,
           s.normalized_score, s.vote, s.probable_defect_type, s.inspected_at, d.extractor_id,
           -- As in defect.images: of reviewed ones only those that came back.
           i.reviewed_label IS NOT NULL AS reviewed,
           i.known_defect_type IS NULL AND i.known_label IS DISTINCT FROM 'normal' AS type_unknown
    FROM pgdefect.image i
    JOIN pgdefect.category c ON c.id = i.category_id AND c.retired_at IS NULL
    JOIN pgdefect.image_root r ON r.id = i.root_id
    JOIN LATERAL (
        SELECT * FROM pgdefect.inspection s WHERE s.image_id = i.id
        ORDER BY s.inspected_at DESC, s.created_at DESC, s.id DESC LIMIT 1
    ) s ON true
    JOIN pgdefect.detector d ON d.id = s.detector_id
    LEFT JOIN LATERAL (
        SELECT v.created_at,
               (SELECT p.is_anomalous FROM pgdefect.inspection p
                WHERE p.image_id = i.id AND p.created_at <= v.created_at
                ORDER BY p.inspected_at DESC, p.created_at DESC, p.id DESC LIMIT 1) AS was_anomalous
        FROM pgdefect.review v WHERE v.image_id = i.id
          AND NOT EXISTS (SELECT FROM pgdefect.review_withdrawal w WHERE w.review_id = v.id)
        ORDER BY v.created_at DESC, v.id DESC LIMIT 1
    ) v ON i.reviewed_label IS NOT NULL
    WHERE i.retired_at IS NULL AND i.split <> 'simulated'
      AND NOT EXISTS (SELECT FROM defect.outliers o WHERE o.image_id = i.id AND o.active)
      AND (i.reviewed_label IS NULL
           OR (s.created_at > v.created_at AND s.is_anomalous <> v.was_anomalous
               AND s.is_anomalous <> (i.reviewed_label = 'anomalous')))
), reasons AS (
    SELECT w.*,
           CASE WHEN w.known_label IS NULL
                THEN greatest(0, 1 - 4 * abs(w.normalized_score - 0.5)) ELSE 0 END
               AS near_threshold,
           CASE WHEN w.type_unknown AND w.vote->'counts' <> '{}'
                THEN greatest(0, least(1, 1 - pgdefect.json_number(w.vote, 'support')
                                              / nullif(pgdefect.json_number(w.vote, 'k'), 0))) END AS vote_doubt,
           CASE WHEN w.type_unknown AND w.is_anomalous THEN (
               SELECT least(1, coalesce(min(e.embedding OPERATOR(:"vector_schema".<=>) k.embedding), 1))
               FROM pgdefect.defect_embedding e
               LEFT JOIN known k ON k.category_id = w.category_id
                                AND k.extractor_id = e.extractor_id AND k.image_id <> e.image_id
               WHERE e.extractor_id = w.extractor_id AND e.image_id = w.image_id
               HAVING count(e.image_id) > 0
           ) END AS novelty,
           EXISTS (SELECT FROM known k WHERE k.category_id = w.category_id
                                         AND k.extractor_id = w.extractor_id) AS types_known,
           CASE WHEN w.is_anomalous <> (w.known_label = 'anomalous')
                THEN least(1, 4 * abs(w.normalized_score - 0.5)) ELSE 0 END AS contradiction
    FROM waiting w
)
SELECT q.image_id, q.category, q.path, q.split, q.priority,
       CASE greatest(q.near_threshold, q.vote_doubt, q.novelty, q.contradiction)
           WHEN q.contradiction THEN CASE WHEN q.reviewed THEN 'a new verdict against its review'
                                          ELSE 'verdict against its label' END
           WHEN q.near_threshold THEN 'near the threshold'
           WHEN q.vote_doubt THEN 'vote in doubt'
           ELSE CASE WHEN NOT q.types_known THEN 'anomalous, and no defect type is known yet'
                     -- A writer may have put anything into a vote.
                     WHEN jsonb_typeof(q.vote->'limit') = 'number'
                      AND to_jsonb(q.novelty) <= q.vote->'limit'
                     THEN 'like a known defect, not confirmed'
                     ELSE 'unlike every known defect' END END AS reason,
       q.near_threshold, q.vote_doubt, q.novelty, q.contradiction,
       CASE WHEN q.is_anomalous THEN 'anomalous' ELSE 'normal' END AS verdict,
       q.normalized_score, q.known_label, q.known_defect_type, q.probable_defect_type, q.vote,
       q.inspection_id, q.inspected_at, false AS outlier
FROM (
    SELECT r.*, 1 - (1 - r.near_threshold) * (1 - coalesce(r.vote_doubt, 0))
                    * (1 - coalesce(r.novelty, 0)) * (1 - r.contradiction) AS priority
    FROM reasons r
) q
WHERE q.priority > 0
UNION ALL
SELECT * FROM (
    SELECT DISTINCT ON (o.image_id)
           o.image_id, o.category, o.path, i.split, 1.0::double precision,
           'outlier among the images it was trained on', 0::double precision,
           NULL::double precision, NULL::double precision,
           CASE WHEN o.raw_score > d.threshold THEN least(1, 4 * abs(n.normalized_score - 0.5))
                ELSE 0 END,
           CASE WHEN o.raw_score > d.threshold THEN 'anomalous' ELSE 'normal' END,
           n.normalized_score, i.known_label, i.known_defect_type, NULL::text, NULL::jsonb,
           NULL::bigint, NULL::timestamptz, true
    FROM defect.outliers o
    JOIN pgdefect.detector d ON d.id = o.detector_id
    JOIN pgdefect.image i ON i.id = o.image_id
    CROSS JOIN LATERAL (
        SELECT pgdefect.normalized_score(o.raw_score, d.threshold, d.score_center)
                   AS normalized_score
    ) n
    WHERE o.active
    ORDER BY o.image_id, pgdefect.kind_preference(d.kind)
) o
ORDER BY outlier DESC, priority DESC, normalized_score DESC, image_id;

COMMENT ON VIEW defect.review_queue IS
'Images whose review would help most, by priority (0 to 1), with the reason: an outlier among the training images (these come first), near the threshold, a vote in doubt, unlike every known defect, or a verdict against its label. Reviewed ones return when a later inspection says otherwise. Example: SELECT image_id, priority, reason, verdict, probable_defect_type, path FROM defect.review_queue WHERE category = ''leather'' ORDER BY outlier DESC, priority DESC LIMIT 10;';
