INSERT INTO {table} (key, version, data{columns})
SELECT key, version, data::json{values}
FROM unnest($1::text[], $2::bigint[], $3::text[]{params}) AS new (key, version, data{columns})
ON CONFLICT (key) DO UPDATE SET version = excluded.version, data = excluded.data{sets}
