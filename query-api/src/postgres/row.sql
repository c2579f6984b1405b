-- One row (its columns null where there is none) and what it is sure to show, of one moment.
SELECT shown.offsets, rows.version, rows.data::text, shown.generation, shown.revisions
FROM (
    SELECT
        array_agg(next_offset - 1 ORDER BY partition) AS offsets,
        max(generation) AS generation,
        array_agg(revision ORDER BY partition) AS revisions
    FROM checkpoints
    WHERE view = $1
) AS shown
LEFT JOIN {relation} AS rows ON rows.key = $2
