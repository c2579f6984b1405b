-- One row where table $2 has other columns than table $1: one of both was there when the other was migrated.
WITH columns AS (
    SELECT attrelid, attname, atttypid, attgenerated
    FROM pg_attribute
    WHERE attrelid IN ($1::text::regclass, $2::text::regclass) AND attnum > 0 AND NOT attisdropped
)
SELECT FROM columns GROUP BY attname, atttypid, attgenerated HAVING count(*) < 2 LIMIT 1
