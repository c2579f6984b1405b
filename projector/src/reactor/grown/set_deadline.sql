INSERT INTO deadlines (kind, aggregate, due_at, cause, reason)
VALUES ($1, $2, to_timestamp($3::bigint / 1000000.0), $4, $5)
ON CONFLICT DO NOTHING
