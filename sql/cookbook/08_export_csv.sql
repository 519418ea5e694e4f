-- Question: how do I take the verdicts into a spreadsheet?
-- Answer:   CSV on stdout:
--           pgdefect db psql -- -qf sql/cookbook/08_export_csv.sql > verdicts.csv
-- Set:      category (all), split (test)
\if :{?split} \else \set split test \endif
\if :{?category} \else \set category '' \endif

COPY (
    SELECT category, path, part, known_label, known_defect_type, verdict,
           normalized_score, raw_score, threshold, probable_defect_type, taken_at, inspected_at
    FROM defect.images
    WHERE split = :'split' AND verdict IS NOT NULL AND retired_at IS NULL
      AND :'category' IN ('', category)
    ORDER BY category, path
) TO STDOUT (FORMAT csv, HEADER);
