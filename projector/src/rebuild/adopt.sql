-- The live checkpoints ($1) are those of the next rows ($2) now, which stand where they do.
UPDATE checkpoints AS live
SET generation = live.generation + 1, revision = live.revision + 1, fold = next.fold, counted = next.counted, counted_hash = next.counted_hash,
    counted_from = next.counted_from
FROM checkpoints AS next
WHERE live.view = $1 AND next.view = $2 AND next.partition = live.partition
