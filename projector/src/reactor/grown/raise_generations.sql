-- Rows of a view keep the generation that clients know, because entity tags contain it.
UPDATE checkpoints AS c
SET generation = former.generation, revision = c.revision + 1
FROM unnest($1::text[], $2::int[]) AS former (view, generation)
WHERE c.view = former.view AND c.generation < former.generation
