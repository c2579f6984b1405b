-- A hash matches few records, usually one; the record itself names its command.
SELECT wanted.index, c.next_offset, places."offset", commit_at(wanted.aggregate, wanted.partition, places."offset") AS record
FROM unnest($1::int[], $2::uuid[], $3::bigint[], $4::text[], $5::int[]) AS wanted (index, key, key_ms, aggregate, partition)
JOIN checkpoints AS c ON c.view = $6 AND c.partition = wanted.partition
LEFT JOIN LATERAL offsets_of(wanted.key, wanted.key_ms, wanted.partition) AS places ("offset") ON true
