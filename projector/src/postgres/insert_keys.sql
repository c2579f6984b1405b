INSERT INTO segment_keys (partition, segment, last_at_ms, first_key, last_key, keys)
SELECT $1, $2, $3, $4, $5, $6
WHERE $4::uuid IS NOT NULL
