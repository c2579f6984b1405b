-- The row of view $1 with key $2, where the fold of form $3 made all of the view: a later event can be folded onto it.
SELECT version, data::text
FROM {relation}
WHERE key = $2 AND NOT EXISTS (SELECT FROM checkpoints WHERE view = $1 AND fold <> $3)
