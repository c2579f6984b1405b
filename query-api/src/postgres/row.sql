-- One row (its columns null where there is none), what it is sure to show, and the first record that is parked and not in
-- it, of one moment.
SELECT shown.offsets, rows.version, rows.data::text, shown.generation, shown.revision, left_out."offset"
FROM (
    -- Sorted once, by the index; an aggregate with an order of its own sorts for itself.
    SELECT
        array_agg(next_offset - 1) AS offsets,
        max(generation) AS generation,
        sum(revision)::bigint AS revision
    FROM (
        SELECT next_offset, generation, revision FROM checkpoints WHERE view = $1 {partition} ORDER BY partition
    ) AS of_partitions
) AS shown
LEFT JOIN (SELECT "offset" FROM parked WHERE view = $1 {parked} LIMIT 1) AS left_out ON true
LEFT JOIN {relation} AS rows ON rows.key = $2
