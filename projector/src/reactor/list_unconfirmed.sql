-- What placed orders caused, and was parked for so long; but for $4 and $5, which are known.
SELECT aggregate, "offset", partition, record
FROM parked AS p
WHERE view = $1
  AND at <= now() - $2::bigint * interval '1 millisecond'
  AND position('"order.placed.'::bytea IN record) > 0
  AND NOT EXISTS (
      SELECT FROM unnest($4::text[], $5::bigint[]) AS known (aggregate, "offset")
      WHERE known.aggregate = p.aggregate AND known."offset" = p."offset"
  )
ORDER BY at
LIMIT $3
