-- The keys of a page from the list's index, their rows, the view's checkpoints, and whether any record of the view is
-- parked, all from one snapshot. One row of nulls if the page is empty. DISTINCT: a key may occur in several
-- partitions. LIMIT 1 keeps the planner from joining the whole relation, and from computing all sums of a summed view.
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
