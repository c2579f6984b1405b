INSERT INTO {table} (key, version, data)
SELECT key, version, data::json
FROM unnest($1::text[], $2::bigint[], $3::text[]) AS new (key, version, data)
ON CONFLICT (key) DO UPDATE SET version = excluded.version, data = excluded.data
