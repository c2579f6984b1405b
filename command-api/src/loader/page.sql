-- Commits of one aggregate of partition $5 from a version on, with the checkpoint of the same moment. If there are
-- fewer than requested, they are the last up to that checkpoint.
SELECT c.next_offset, j.records, j.last_version, j.last_offset
FROM checkpoints AS c
CROSS JOIN LATERAL (
    SELECT array_agg(record ORDER BY version) AS records, max(version) AS last_version, max("offset") AS last_offset
    FROM commits_of($1, $5, $2::bigint - 1, $3)
) AS j
WHERE c.view = $4 AND c.partition = $5
