-- Question: what takes the space?
-- Answer:   tables with their indexes, the largest first; partitions are counted with the table
--           they belong to. Retired banks go with pgdefect delete, kept patches with
--           DELETE FROM pgdefect.image_patches.
SELECT coalesce(parent.relname, t.relname) AS "table", count(*) AS tables,
       pg_size_pretty(sum(pg_total_relation_size(t.oid))) AS size,
       round(100 * sum(pg_total_relation_size(t.oid)) / sum(sum(pg_total_relation_size(t.oid))) OVER (), 1)
           AS percent
FROM pg_class t
LEFT JOIN pg_inherits h ON h.inhrelid = t.oid
LEFT JOIN pg_class parent ON parent.oid = h.inhparent
WHERE t.relnamespace = 'pgdefect'::regnamespace AND t.relkind = 'r'
GROUP BY 1
ORDER BY sum(pg_total_relation_size(t.oid)) DESC
LIMIT 10;
