-- Takes a segment's records out of the tail. Whoever comes second finds none.
DELETE FROM journal_tail WHERE partition = $1 AND segment = $2
RETURNING offsets, aggregates, versions, events, records, keys, last_at_ms
