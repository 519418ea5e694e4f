-- Question: what would another threshold cost: escapes against false rejects?
-- Answer:   a line per threshold. Bars are shares: - of normal images rejected, # of anomalous
--           images let through. The present threshold is marked. Put one in force with
--           SELECT * FROM defect.set_threshold('CATEGORY', THRESHOLD);
-- Set:      bank (the newest inspected one), steps (20)
\if :{?steps} \else \set steps 20 \endif
\if :{?bank} \else
SELECT coalesce(max(detector_id), 0) AS bank FROM defect.inspections WHERE known_label IS NOT NULL \gset
\endif

WITH span AS (
    SELECT min(raw_score) AS low, max(raw_score) AS high
    FROM defect.inspections WHERE detector_id = :bank AND known_label IS NOT NULL
), marks AS (
    SELECT low + (high - low) * n / :steps AS threshold, false AS present
    FROM span, generate_series(0, :steps) n WHERE low IS NOT NULL
    UNION ALL
    SELECT threshold, true FROM defect.detectors WHERE detector_id = :bank
)
SELECT round(m.threshold::numeric, 5) AS threshold, CASE WHEN m.present THEN '<- now' ELSE '' END AS now,
       w.false_rejects || ' of ' || w.normal_images AS false_rejects,
       rpad(repeat('-', round(20 * w.false_reject_rate)::integer), 20) AS "share of normal",
       w.escapes || ' of ' || w.anomalous_images AS escapes,
       rpad(repeat('#', round(20 * w.escape_rate)::integer), 20) AS "share of defects"
FROM marks m
CROSS JOIN LATERAL defect.what_if(detector => :bank, threshold => m.threshold) w
ORDER BY m.threshold;
