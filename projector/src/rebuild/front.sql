-- Highest offset of the live checkpoints ($1) in each partition.
SELECT max(next_offset) AS next_offset
FROM checkpoints
WHERE view = ANY($1)
GROUP BY partition
ORDER BY partition
