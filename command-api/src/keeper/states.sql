-- The state at the snapshot's version, and what happened since; the snapshot's own last event comes along, for its
-- offset. All as of one moment, and so is the checkpoint.
SELECT wanted.index, c.next_offset, s.version, s.state, j.types, j.data, j.versions, j.last_offset
FROM unnest($1::int[], $2::text[], $3::int[]) AS wanted (index, aggregate, partition)
JOIN checkpoints AS c ON c.view = $4 AND c.partition = wanted.partition
LEFT JOIN snapshots AS s ON s.aggregate = wanted.aggregate AND s.form = $5
LEFT JOIN LATERAL (
    SELECT
        array_agg(type ORDER BY version) AS types,
        array_agg(data::text ORDER BY version) AS data,
        array_agg(version ORDER BY version) AS versions,
        max("offset") AS last_offset
    FROM journal
    WHERE aggregate = wanted.aggregate AND version >= coalesce(s.version, 0)
) AS j ON true
