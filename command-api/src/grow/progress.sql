-- Offset up to which every view of $1 has folded the partition.
SELECT partition, min(next_offset) FROM checkpoints WHERE view = ANY ($1) GROUP BY partition
