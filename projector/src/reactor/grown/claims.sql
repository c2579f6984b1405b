-- Records of segment $2 of partition $1 that may be the claim that ended the copy.
SELECT r."offset", r.record
FROM (
    SELECT offsets, aggregates, records FROM journal_tail WHERE partition = $1 AND segment = $2
    UNION ALL
    SELECT offsets, aggregates, records FROM segment_blocks WHERE partition = $1 AND segment = $2
) AS runs
CROSS JOIN LATERAL unnest(runs.offsets, runs.aggregates, runs.records) AS r ("offset", aggregate, record)
WHERE r.aggregate IS NULL AND position('"copied:'::bytea IN r.record) > 0
ORDER BY r."offset"
