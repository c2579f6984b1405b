-- How many of these checkpoints are as this process left them, and of how many aggregates something is parked.
SELECT
    (
        SELECT count(*)
        FROM checkpoints AS c
        JOIN unnest($2::int[], $3::bigint[], $4::bigint[]) AS mine (partition, next_offset, revision)
            ON c.partition = mine.partition AND c.next_offset = mine.next_offset AND c.revision = mine.revision
        WHERE c.view = $1
    ),
    (SELECT count(DISTINCT aggregate) FROM parked WHERE view = $1)
