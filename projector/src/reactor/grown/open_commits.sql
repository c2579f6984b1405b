-- What counts of partition $1 from offset $2 on, in order.
SELECT DISTINCT r."offset", r.aggregate, r.version
FROM (
    SELECT offsets, aggregates, versions FROM journal_tail WHERE partition = $1 AND segment >= $2::bigint / 1024
    UNION ALL
    SELECT offsets, aggregates, versions FROM segment_blocks WHERE partition = $1 AND segment >= $2::bigint / 1024
) AS runs
CROSS JOIN LATERAL unnest(runs.offsets, runs.aggregates, runs.versions) AS r ("offset", aggregate, version)
WHERE r.aggregate IS NOT NULL AND r."offset" >= $2
ORDER BY r."offset"
