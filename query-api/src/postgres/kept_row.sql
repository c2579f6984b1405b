-- The row of view $1 with key $2, provided that the fold of form $3 made the whole view, so that later events can be
-- folded onto the row.
SELECT version, data::text
FROM {relation}
WHERE key = $2 AND NOT EXISTS (SELECT FROM checkpoints WHERE view = $1 AND fold <> $3)
