-- Which images a detector has learned from (learned), and which others set its threshold (not).
--
-- Learned: the images of a memory bank, or those that a network names as its own, whatever became
-- of them since; and the category's normal training images that did not set the threshold, since
-- any may have been seen though the bank holds nothing of it. An image that set the threshold of
-- a memory bank made here was compared with the bank's other parts alone: it counts as learned,
-- whether or not the bank holds anything of it. What an imported bank was made of is not known.
CREATE OR REPLACE FUNCTION pgdefect.images_learned(detector bigint)
RETURNS TABLE (image_id bigint, learned boolean)
LANGUAGE sql
STABLE PARALLEL SAFE
SET search_path = pg_catalog
AS $$
    WITH in_bank AS MATERIALIZED (
        SELECT DISTINCT p.image_id FROM pgdefect.memory_bank_patch p
        WHERE p.bank_id = images_learned.detector AND p.image_id <> 0
    ), held_out AS (
        SELECT h.image_id, EXISTS (SELECT FROM in_bank) AS learned
        FROM pgdefect.holdout_score h WHERE h.detector_id = images_learned.detector
    )
    SELECT every.image_id, bool_or(every.learned)
    FROM (
        SELECT b.image_id, true FROM in_bank b
        UNION ALL
        SELECT h.image_id, h.learned FROM held_out h
        UNION ALL
        SELECT named.id::bigint, true
        FROM pgdefect.detector d, jsonb_array_elements_text(d.settings->'training_images') named(id)
        WHERE d.id = images_learned.detector
        UNION ALL
        SELECT t.id, true
        FROM pgdefect.detector d
        JOIN pgdefect.image t ON t.category_id = d.category_id
        WHERE d.id = images_learned.detector AND t.split = 'train' AND 'normal' IN (t.label, t.known_label)
          AND (t.retired_at IS NULL OR t.retired_at > d.created_at)
          AND t.id NOT IN (SELECT h.image_id FROM held_out h)
    ) every(image_id, learned)
    GROUP BY every.image_id
$$;

COMMENT ON FUNCTION pgdefect.images_learned IS
'Images a detector has learned from (learned), and others that set its threshold. Used by pgdefect.labeled_scores and pgdefect evaluate.';
