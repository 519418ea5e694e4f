-- Take a mistaken review back; returns the image's id.
--
-- review  the review's id, as defect.reviews has it
-- note    why
--
-- The review stays in the history, marked with who withdrew it and when. In force is again what the
-- review before it said, or what the data set does.
CREATE OR REPLACE FUNCTION defect.withdraw_review(review bigint, note text DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog
AS $$
DECLARE
    image bigint;
BEGIN
    SELECT v.image_id INTO image FROM pgdefect.review v WHERE v.id = withdraw_review.review;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no review %', coalesce(withdraw_review.review::text, 'NULL')
            USING ERRCODE = 'PD404', HINT = 'SELECT review_id, path, label FROM defect.reviews lists them.';
    END IF;
    INSERT INTO pgdefect.review_withdrawal (review_id, note)
    VALUES (withdraw_review.review, nullif(btrim(withdraw_review.note), ''))
    ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'review % was withdrawn before', withdraw_review.review
            USING ERRCODE = 'PD409', HINT = 'SELECT withdrawn_at, withdrawn_by FROM defect.reviews tells when and by whom.';
    END IF;
    RETURN image;
END
$$;

COMMENT ON FUNCTION defect.withdraw_review IS
'Takes a mistaken review back, and returns its image''s id: the review before it counts again, or the data set''s label. For writers. Example: SELECT defect.withdraw_review(review_id, note => ''wrong image'') FROM defect.reviews WHERE in_force AND path LIKE ''%scratch/003.png'';';
