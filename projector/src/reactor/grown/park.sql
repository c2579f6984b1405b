INSERT INTO parked (view, aggregate, "offset", partition, version, reason, at, record)
VALUES ($1, $2, $3, $4, $5, $6, to_timestamp($7::bigint / 1000000.0), $8)
ON CONFLICT DO NOTHING
