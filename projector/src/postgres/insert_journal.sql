-- The columns are named so that a table with other columns than this build's is rejected before anything is committed.
INSERT INTO journal_tail (
    partition, segment, first_offset, offsets, aggregates, versions, events, records, names, keys, last_at_ms
)
SELECT * FROM unnest($1::journal_tail[])
