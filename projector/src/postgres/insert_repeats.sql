-- Inserts keys into existing partitions; a time past the last partition counts as the last one's. A dropped partition,
-- even if another projector dropped it a moment ago, was past its window. This statement's lock on the table protects
-- the other partitions from being dropped.
WITH new AS MATERIALIZED (
    SELECT key, least(at_ms, $6::bigint - 1) AS kept_ms, partition, "offset"
    FROM unnest($1::uuid[], $2::bigint[], $3::int[], $4::bigint[]) AS command (key, at_ms, partition, "offset")
    WHERE at_ms >= $5::bigint
),
slots AS MATERIALIZED (
    SELECT slot FROM (SELECT DISTINCT kept_ms / 300000 AS slot FROM new) AS named
    WHERE to_regclass('repeats_' || slot) IS NOT NULL
)
INSERT INTO repeats (key, at, partition, "offset")
SELECT key, to_timestamp(kept_ms / 1000::float8), partition, "offset"
FROM new
WHERE kept_ms / 300000 IN (SELECT slot FROM slots)
