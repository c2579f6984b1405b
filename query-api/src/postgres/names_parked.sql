-- One row where a record of the view is parked that lies at one of these places: partitions $2, offsets $3.
SELECT FROM parked
JOIN unnest($2::int[], $3::bigint[]) AS named (partition, "offset") USING (partition, "offset")
WHERE parked.view = $1
LIMIT 1
