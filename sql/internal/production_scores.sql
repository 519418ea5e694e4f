-- Raw scores that a detector gave to production images that are normal: what a threshold is made
-- from again after the line, the light or the product has changed.
--
-- Normal is what the newest review, else the data set, calls so. anomalous_share presumes more: all
-- images nobody has judged are normal but for this share, and the share with the highest scores is
-- left out. The newest score of each image counts; retired images, those the detector has learned
-- from, copies of their files and images of their parts do not.
CREATE OR REPLACE FUNCTION pgdefect.production_scores(
    detector bigint, anomalous_share double precision DEFAULT NULL
) RETURNS TABLE (image_id bigint, raw_score double precision, presumed boolean)
LANGUAGE sql
STABLE PARALLEL SAFE
SET search_path = pg_catalog
AS $$
    WITH learned AS MATERIALIZED (
        SELECT t.id, t.group_name, t.sha256
        FROM pgdefect.images_learned(production_scores.detector) l
        JOIN pgdefect.image t ON t.id = l.image_id
        WHERE l.learned
    ), newest AS (
        SELECT DISTINCT ON (i.id) i.id, s.raw_score, i.known_label IS NULL AS presumed
        FROM pgdefect.inspection s
        JOIN pgdefect.image i ON i.id = s.image_id
        WHERE s.detector_id = production_scores.detector
          AND i.split = 'production'
          AND i.retired_at IS NULL
          AND (i.known_label = 'normal' OR i.known_label IS NULL AND anomalous_share IS NOT NULL)
          AND NOT EXISTS (SELECT FROM learned l WHERE l.group_name = i.group_name)
          AND NOT EXISTS (SELECT FROM learned l WHERE l.sha256 = i.sha256)
        ORDER BY i.id, s.inspected_at DESC, s.created_at DESC, s.id DESC
    ), ranked AS (
        SELECT n.*, row_number() OVER (PARTITION BY presumed ORDER BY raw_score, id) AS place,
               count(*) OVER (PARTITION BY presumed) AS count
        FROM newest n
    )
    SELECT id, raw_score, presumed FROM ranked
    WHERE NOT presumed OR place <= count - ceil(count * anomalous_share - 1e-9::double precision)
$$;

COMMENT ON FUNCTION pgdefect.production_scores IS
'Raw scores a detector gave to production images known to be normal, or presumed so but for a share of those nobody has judged. Used by defect.threshold_from_production and pgdefect threshold --production.';
