-- What happened to one aggregate from a version on, and the checkpoint of the same moment. Where fewer events come than
-- were asked for, they are the last up to that checkpoint.
SELECT c.next_offset, j.types, j.data, j.versions, j.last_offset
FROM checkpoints AS c
CROSS JOIN LATERAL (
    SELECT
        array_agg(type ORDER BY version) AS types,
        array_agg(data::text ORDER BY version) AS data,
        array_agg(version ORDER BY version) AS versions,
        max("offset") AS last_offset
    FROM (
        SELECT type, data, version, "offset"
        FROM journal
        WHERE aggregate = $1 AND version >= $2
        ORDER BY version
        LIMIT $3
    ) AS page
) AS j
WHERE c.view = $4 AND c.partition = $5
