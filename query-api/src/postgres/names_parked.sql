-- One row if a record of the view is parked at any of these positions: partitions $2, offsets $3.
SELECT FROM parked
JOIN unnest($2::int[], $3::bigint[]) AS named (partition, "offset") USING (partition, "offset")
WHERE parked.view = $1
LIMIT 1
