-- Keep what a person says of an image; returns the review's id.
--
-- image         an id, the end of a path, or the start of a sha256
-- label         normal or anomalous
-- defect_type   what kind of defect, of an anomalous image; a type that is new to the category
--               is taken, but one that looks like a known one misspelt needs new_type
-- note          why, or anything else
-- new_type      the defect type is meant as written
-- category      whose image is meant, where several products have one of that name
--
-- The newest review is what counts, filters, votes and figures go by, at once. The detector's
-- verdict, and what the data set said, stay beside it.
--
-- Same rule in Python:
--   pgdefect.core.words.LABELS
CREATE OR REPLACE FUNCTION defect.review(
    image text,
    label text,
    defect_type text DEFAULT NULL,
    note text DEFAULT NULL,
    new_type boolean DEFAULT false,
    category text DEFAULT NULL
) RETURNS bigint
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog
AS $$
DECLARE
    reviewed pgdefect.image;
    known text[];
    near text;
    made bigint;
BEGIN
    IF (review.label IN ('normal', 'anomalous')) IS NOT TRUE THEN
        RAISE EXCEPTION 'the label is normal or anomalous, not %',
            coalesce(quote_literal(review.label), 'NULL')
            USING ERRCODE = 'PD400', HINT = 'What kind of defect it is goes into defect_type.';
    END IF;
    IF review.label = 'normal' AND review.defect_type IS NOT NULL THEN
        RAISE EXCEPTION 'a normal image has no defect type, and % was named',
            quote_literal(review.defect_type)
            USING ERRCODE = 'PD400', HINT = 'Leave it out, or label the image anomalous.';
    END IF;
    IF btrim(review.defect_type) = '' OR review.defect_type <> btrim(review.defect_type) THEN
        RAISE EXCEPTION 'the defect type % is empty or has spaces around it',
            quote_literal(review.defect_type)
            USING ERRCODE = 'PD400', HINT = 'Leave it out if it is not known.';
    END IF;
    SELECT i.* INTO STRICT reviewed FROM pgdefect.image i WHERE i.id = defect.find_image(review.image, review.category);
    IF reviewed.split = 'simulated' THEN
        RAISE EXCEPTION 'image % has a simulated defect: what it is was decided when it was drawn',
            reviewed.id
            USING ERRCODE = 'PD409',
                  HINT = format('The photograph it was drawn on is image %s.',
                                reviewed.simulation->>'source_image_id');
    END IF;
    IF review.defect_type IS NOT NULL AND NOT coalesce(new_type, false) THEN
        SELECT array_agg(DISTINCT i.known_defect_type ORDER BY i.known_defect_type) INTO known
        FROM pgdefect.image i
        WHERE i.category_id = reviewed.category_id AND i.known_defect_type IS NOT NULL
          AND i.split <> 'simulated';
        -- A quarter of the letters may differ: scrath, scratches, Scratch.
        SELECT k INTO near FROM unnest(known) k
        WHERE NOT review.defect_type = ANY (known)
          AND pgdefect.edit_distance(k, review.defect_type)
              <= greatest(1, greatest(length(k), length(review.defect_type)) / 4)
        ORDER BY pgdefect.edit_distance(k, review.defect_type), k LIMIT 1;
        IF near IS NOT NULL THEN
            RAISE EXCEPTION 'no image of the category has defect type %; did you mean %? Known: %',
                quote_literal(review.defect_type), quote_literal(near), array_to_string(known, ', ')
                USING ERRCODE = 'PD409',
                      HINT = 'If it is a new type, pass new_type => true.';
        END IF;
    END IF;
    INSERT INTO pgdefect.review (image_id, label, defect_type, note, created_at)
    VALUES (reviewed.id, review.label, review.defect_type, nullif(btrim(review.note), ''),
            clock_timestamp())
    RETURNING id INTO made;
    RETURN made;
END
$$;

-- The same of an image named by its id.
CREATE OR REPLACE FUNCTION defect.review(
    image bigint,
    label text,
    defect_type text DEFAULT NULL,
    note text DEFAULT NULL,
    new_type boolean DEFAULT false,
    category text DEFAULT NULL
) RETURNS bigint
LANGUAGE sql
SET search_path = pg_catalog
AS $$
    SELECT defect.review(image::text, label, defect_type, note, new_type, category)
$$;

COMMENT ON FUNCTION defect.review(text, text, text, text, boolean, text) IS
'Keeps what a person says of an image and returns the review''s id: label normal or anomalous, optionally defect type and note. Counts, filters and votes go by it at once; the verdict stays. For writers. Example: SELECT defect.review(''scratch/003.png'', label => ''anomalous'', defect_type => ''scratch'', note => ''visible by eye'');';

COMMENT ON FUNCTION defect.review(bigint, text, text, text, boolean, text) IS
'The same of an image named by its id. Example: SELECT defect.review(6, label => ''normal'');';
