-- One row (null columns if it does not exist), the checkpoints, and the offset of the first parked record that the row
-- lacks, from one snapshot.
SELECT shown.offsets, rows.version, rows.data::text, shown.generation, shown.revision, left_out."offset"
FROM (
    -- Sorted once, through the index; an ORDER BY inside an aggregate function would sort separately.
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
