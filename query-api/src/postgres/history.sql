-- Events of an aggregate after version $3, oldest first, and what they are sure to show, of one moment. One row of
-- nulls where there is none.
SELECT
    shown.offsets,
    events.version,
    events.type,
    events.data::text,
    (extract(epoch FROM events.at) * 1000)::bigint,
    events.partition,
    events."offset",
    events.command_id,
    events.cause,
    events.trace
FROM (SELECT array_agg(next_offset - 1 ORDER BY partition) AS offsets FROM checkpoints WHERE view = $1) AS shown
LEFT JOIN (
    SELECT * FROM journal WHERE aggregate = $2 AND version > $3 ORDER BY version LIMIT $4
) AS events ON true
ORDER BY events.version
