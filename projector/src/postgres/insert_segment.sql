INSERT INTO segments (partition, segment, records, hash) VALUES ($1, $2, $3, $4)
