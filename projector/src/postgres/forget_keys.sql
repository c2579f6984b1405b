-- Deletes the keys of partition $1 whose commands were all decided before $2.
DELETE FROM segment_keys WHERE partition = $1 AND last_at_ms < $2
