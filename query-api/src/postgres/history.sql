-- Commits of an aggregate of partition $3 after version $4, oldest first, with the checkpoint of the journal, from one
-- snapshot. One row of nulls if there are none.
SELECT shown.offsets, commits."offset", commits.record
FROM (SELECT array_agg(next_offset - 1) AS offsets FROM checkpoints WHERE view = $1 AND partition = $3) AS shown
LEFT JOIN commits_of($2, $3, $4, $5) AS commits ON true
ORDER BY commits.version
