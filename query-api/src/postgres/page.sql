-- Rows in the order of their keys after $2, within $3 and $4 where given, and what they are sure to show, of one
-- moment. One row of nulls where there is none.
SELECT shown.offsets, rows.key, rows.version, rows.data::text
FROM (SELECT array_agg(next_offset - 1 ORDER BY partition) AS offsets FROM checkpoints WHERE view = $1) AS shown
LEFT JOIN (
    SELECT key, version, data FROM {relation}
    WHERE key > $2 AND ($3::text IS NULL OR key >= $3) AND ($4::text IS NULL OR key <= $4)
    ORDER BY key
    LIMIT $5
) AS rows ON true
ORDER BY rows.key
