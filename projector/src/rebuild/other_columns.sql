-- One row if table $2 has other columns or another number of indexes than table $1: a migration ran in between.
WITH parts AS (
    SELECT attname::text AS name, atttypid AS type, pg_get_expr(value.adbin, value.adrelid) AS value
    FROM pg_attribute
    LEFT JOIN pg_attrdef AS value ON value.adrelid = attrelid AND value.adnum = attnum
    WHERE attrelid IN ($1::text::regclass, $2::text::regclass) AND attnum > 0 AND NOT attisdropped
    UNION ALL
    SELECT count(*)::text, NULL, 'indexes'
    FROM pg_index
    WHERE indrelid IN ($1::text::regclass, $2::text::regclass)
    GROUP BY indrelid
)
SELECT FROM parts GROUP BY name, type, value HAVING count(*) < 2 LIMIT 1
