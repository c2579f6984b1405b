-- Offsets up to which all of the $2 feeds $1 have folded their partitions.
SELECT partition, min(next_offset) FROM checkpoints WHERE view = ANY ($1) GROUP BY partition HAVING count(*) = $2
