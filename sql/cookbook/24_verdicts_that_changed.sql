-- Question: which images were inspected twice with different verdicts, and why?
-- Answer:   every judgement after an image's first, by whether its verdict changed and what was
--           different: the detector, the threshold (a re-judgement, or one set in between), the
--           search, or nothing: then the score lies in the noise. Scores are normalized.
SELECT category,
       CASE WHEN from_verdict = verdict THEN 'unchanged' ELSE from_verdict || ' to ' || verdict END
           AS changed,
       why, count(*) AS judgements,
       round(avg(abs(normalized_score - from_score))::numeric, 3) AS mean_change,
       max(path) AS for_example
FROM (
    SELECT s.category, s.path, s.verdict, s.normalized_score,
           lag(s.verdict) OVER w AS from_verdict, lag(s.normalized_score) OVER w AS from_score,
           CASE WHEN lag(s.detector_id) OVER w <> s.detector_id THEN 'another detector'
                WHEN lag(s.threshold) OVER w <> s.threshold THEN 'another threshold'
                WHEN lag(s.search) OVER w <> s.search THEN 'another search'
                ELSE 'nothing' END AS why
    FROM defect.inspections s
    WINDOW w AS (PARTITION BY s.image_id ORDER BY s.inspected_at, s.judged_at, s.inspection_id)
) pairs
WHERE from_verdict IS NOT NULL
GROUP BY 1, 2, 3
ORDER BY category, min((from_verdict = verdict)::int), judgements DESC, why;
