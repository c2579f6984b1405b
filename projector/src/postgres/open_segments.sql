-- Segments of partition $1 below $2 that still have records in the tail.
SELECT DISTINCT segment FROM journal_tail WHERE partition = $1 AND segment < $2 ORDER BY segment
