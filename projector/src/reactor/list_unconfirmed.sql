-- What placed orders caused, and was parked for so long.
SELECT aggregate, "offset", partition, record
FROM parked
WHERE view = $1
  AND at <= now() - $2::bigint * interval '1 millisecond'
  AND position('"order.placed.'::bytea IN record) > 0
ORDER BY at
LIMIT $3
