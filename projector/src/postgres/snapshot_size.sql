SELECT version, octet_length(state) FROM snapshots WHERE aggregate = $1 AND form = $2
