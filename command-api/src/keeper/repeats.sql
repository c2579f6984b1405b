-- The hash leads to few rows, as a rule to one; whose they are, the record tells.
SELECT wanted.index, c.next_offset, found."offset", found.fingerprint, found.version, found.record
FROM unnest($1::int[], $2::uuid[], $3::text[], $4::int[]) AS wanted (index, key, aggregate, partition)
JOIN checkpoints AS c ON c.view = $5 AND c.partition = wanted.partition
LEFT JOIN LATERAL (
    SELECT r."offset", r.fingerprint, r.version, j.record
    FROM repeats AS r
    CROSS JOIN LATERAL commits_of(wanted.aggregate, wanted.partition, r.version - r.events, 1) AS j
    WHERE r.key = wanted.key AND r.partition = wanted.partition AND j."offset" = r."offset"
) AS found ON true
