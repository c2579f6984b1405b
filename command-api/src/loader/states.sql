-- State at the snapshot's version, and the commits since; the snapshot's own last commit is included for its offset.
-- All of it, and the checkpoint, is as of one moment. A history of more than $6 commits is only flagged: it needs
-- statements of its own.
SELECT
    wanted.index, c.next_offset, s.version, j.records, j.last_version, j.last_offset, j.is_long,
    CASE WHEN NOT j.is_long THEN s.state END AS state
FROM unnest($1::int[], $2::text[], $3::int[]) AS wanted (index, aggregate, partition)
JOIN checkpoints AS c ON c.view = $4 AND c.partition = wanted.partition
LEFT JOIN state_snapshots AS s ON s.form = $5 AND s.aggregate = wanted.aggregate
CROSS JOIN LATERAL (
    SELECT
        CASE WHEN count(*) <= $6 THEN array_agg(record ORDER BY version) END AS records,
        max(version) AS last_version,
        max("offset") AS last_offset,
        count(*) > $6 AS is_long
    FROM commits_of(wanted.aggregate, wanted.partition, coalesce(s.version, 0) - 1, $6::bigint + 1)
) AS j
