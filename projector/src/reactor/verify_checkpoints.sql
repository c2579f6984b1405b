-- Number of these checkpoints that are as this process left them; then, for the reactor and for deadlines, the number
-- of aggregates with something parked, and the age of the oldest in seconds.
SELECT
    (
        SELECT count(*)
        FROM checkpoints AS c
        JOIN unnest($2::int[], $3::bigint[], $4::bigint[]) AS mine (partition, next_offset, revision)
            ON c.partition = mine.partition AND c.next_offset = mine.next_offset AND c.revision = mine.revision
        WHERE c.view = $1
    ),
    reactor.*,
    deadlines.*
FROM (
    SELECT count(DISTINCT aggregate), coalesce(extract(epoch FROM now() - min(at)), 0)::float8 FROM parked WHERE view = $1
) AS reactor,
(
    SELECT count(DISTINCT aggregate), coalesce(extract(epoch FROM now() - min(due_at)), 0)::float8
    FROM deadlines WHERE reason IS NOT NULL
) AS deadlines
