-- Within the partitions that there are. What is older than all of them is past its window.
INSERT INTO repeats (key, at, partition, "offset", fingerprint, version, events)
SELECT key, to_timestamp(least(at_ms, $9::bigint - 1) / 1000.0), partition, "offset", fingerprint, version, events
FROM unnest($1::uuid[], $2::bigint[], $3::int[], $4::bigint[], $5::bigint[], $6::bigint[], $7::smallint[])
    AS command (key, at_ms, partition, "offset", fingerprint, version, events)
WHERE at_ms >= $8::bigint
