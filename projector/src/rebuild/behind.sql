-- Partitions in which the next checkpoint ($2) is behind the live one ($1), or missing.
SELECT live.partition
FROM checkpoints AS live
LEFT JOIN checkpoints AS next ON next.view = $2 AND next.partition = live.partition
WHERE live.view = $1 AND next.next_offset >= live.next_offset IS NOT TRUE
ORDER BY live.partition
