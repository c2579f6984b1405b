SELECT key, version, data::text FROM {table} WHERE key = ANY($1)
