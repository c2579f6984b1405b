-- Placed orders whose reactions have been parked for $2 ms, except for $4 and $5, which are being handled.
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
