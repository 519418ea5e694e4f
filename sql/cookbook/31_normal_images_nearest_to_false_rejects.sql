-- Question: which normal images lie nearest to the false rejects, over two banks?
-- Answer:   for every image that is known to be normal and was rejected, the normal photograph
--           whose patch is nearest to its worst one, by each PatchCore detector that rejected
--           it. Both banks name the same photograph: more like it are missing in training. They
--           name different ones: the threshold is in the noise.
SELECT category, path, string_agg(version::text, ', ' ORDER BY version) AS by_versions,
       round(max(normalized_score)::numeric, 3) AS highest_score,
       count(DISTINCT normal_path) = 1 AS the_same,
       min(normal_path) AS nearest_normal
FROM (
    SELECT DISTINCT ON (s.detector_id, s.image_id) s.category, s.path, s.version,
           s.normalized_score, s.verdict, n.normal_path
    FROM defect.inspections s
    CROSS JOIN LATERAL (
        SELECT normal_path FROM defect.nearest_normal(s.inspection_id) LIMIT 1
    ) n
    WHERE s.known_label = 'normal' AND s.split <> 'train' AND s.kind = 'patchcore'
      AND s.verdict = 'anomalous'
    ORDER BY s.detector_id, s.image_id, s.inspected_at DESC, s.judged_at DESC, s.inspection_id DESC
) rejected
GROUP BY category, path
ORDER BY highest_score DESC, path;
