SELECT type, data::text, version FROM journal WHERE aggregate = $1 AND version > $2 ORDER BY version LIMIT $3
