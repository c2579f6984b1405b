SELECT
    wanted.index,
    c.next_offset,
    (SELECT array_agg("offset") FROM repeats WHERE key = wanted.key AND partition = wanted.partition)
FROM unnest($1::int[], $2::uuid[], $3::int[]) AS wanted (index, key, partition)
JOIN checkpoints AS c ON c.view = $4 AND c.partition = wanted.partition
