-- Aggregates with events in the journal of partition $1 from offset $2 on, from $3 segments at most, and the offset up
-- to which they are complete.
SELECT least(c.next_offset, page.until * 1024) AS until, coalesce(found.names, '{}') AS names
FROM (SELECT $2::bigint / 1024 AS first, $2::bigint / 1024 + $3::bigint AS until) AS page
JOIN checkpoints AS c ON c.view = $4 AND c.partition = $1
CROSS JOIN LATERAL (
    SELECT array_agg(named.aggregate) AS names
    FROM (
        SELECT DISTINCT unnest(runs.aggregates) AS aggregate
        FROM (
            SELECT b.aggregates
            FROM segment_blocks AS b
            WHERE b.partition = $1 AND b.segment >= page.first AND b.segment < page.until
            UNION ALL
            SELECT t.aggregates
            FROM journal_tail AS t
            WHERE t.partition = $1 AND t.first_offset >= page.first * 1024 AND t.first_offset < page.until * 1024
        ) AS runs
    ) AS named
    WHERE named.aggregate IS NOT NULL
) AS found
