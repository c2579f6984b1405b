SELECT version, octet_length(state) FROM state_snapshots WHERE form = $1 AND aggregate = $2
