-- Within the partitions that there are. What is older than all of them is past its window.
INSERT INTO repeats (key, at, partition, "offset")
SELECT key, to_timestamp(least(at_ms, $6::bigint - 1) / 1000.0), partition, "offset"
FROM unnest($1::uuid[], $2::bigint[], $3::int[], $4::bigint[]) AS command (key, at_ms, partition, "offset")
WHERE at_ms >= $5::bigint
