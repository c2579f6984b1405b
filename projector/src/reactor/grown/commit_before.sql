-- The last commit that counts before offset $2 of partition $1, if it is in the same segment or the one before.
SELECT r."offset", r.record
FROM (
    SELECT offsets, aggregates, records
    FROM journal_tail
    WHERE partition = $1 AND segment BETWEEN $2::bigint / 1024 - 1 AND $2::bigint / 1024
    UNION ALL
    SELECT offsets, aggregates, records
    FROM segment_blocks
    WHERE partition = $1 AND segment BETWEEN $2::bigint / 1024 - 1 AND $2::bigint / 1024
) AS runs
CROSS JOIN LATERAL unnest(runs.offsets, runs.aggregates, runs.records) AS r ("offset", aggregate, record)
WHERE r.aggregate IS NOT NULL AND r."offset" < $2
ORDER BY r."offset" DESC
LIMIT 1
