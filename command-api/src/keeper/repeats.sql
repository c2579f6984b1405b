-- The hash leads to few rows, as a rule to one; whose they are, the journal tells.
SELECT wanted.index, c.next_offset, found."offset", found.fingerprint, found.version, found.types
FROM unnest($1::int[], $2::uuid[], $3::text[], $4::text[], $5::int[])
    AS wanted (index, key, aggregate, command_id, partition)
JOIN checkpoints AS c ON c.view = $6 AND c.partition = wanted.partition
LEFT JOIN LATERAL (
    SELECT r."offset", r.fingerprint, r.version, j.types
    FROM repeats AS r
    CROSS JOIN LATERAL (
        SELECT array_agg(type ORDER BY version) AS types
        FROM journal
        WHERE aggregate = wanted.aggregate
          AND version > r.version - r.events
          AND version <= r.version
          AND command_id = wanted.command_id
    ) AS j
    WHERE r.key = wanted.key AND r.partition = wanted.partition AND j.types IS NOT NULL
    LIMIT 1
) AS found ON true
