-- The keys of a page, walked along the list's index, and their rows; what they are sure to show, and whether something is
-- parked that they may lack, of one moment. One row of nulls where there is none. A key may stand in several parts.
-- Without its limit the look-up of a row would be joined as a whole, and a summed view be summed up whole.
SELECT
    shown.offsets,
    page.key,
    page.version,
    page.data::text,
    page.{order}::text AS value,
    EXISTS (SELECT FROM parked WHERE view = $1)
FROM (SELECT array_agg(next_offset - 1 ORDER BY partition) AS offsets FROM checkpoints WHERE view = $1) AS shown
LEFT JOIN (
    SELECT walked.*, row.version, row.data
    FROM (SELECT DISTINCT {columns} FROM {table} {conditions} ORDER BY {direction} LIMIT $2) AS walked
    CROSS JOIN LATERAL (SELECT version, data FROM {relation} AS rows WHERE rows.key = walked.key LIMIT 1) AS row
) AS page ON true
ORDER BY {direction}
