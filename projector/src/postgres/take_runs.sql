-- Removes a segment's records from the tail. A concurrent second caller gets none.
DELETE FROM journal_tail WHERE partition = $1 AND segment = $2
RETURNING offsets, aggregates, versions, events, records, keys, last_at_ms
