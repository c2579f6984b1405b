SELECT key, version, data::text FROM {relation} WHERE key = ANY($1)
