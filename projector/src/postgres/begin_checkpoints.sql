INSERT INTO checkpoints (view, partition, next_offset, epoch_claim, epoch_nonce, last_seq, last_counted, fold)
SELECT view, partition, 0, -1, 0, 0, -1, fold
FROM unnest($1::text[], $3::int[]) AS feeds (view, fold), generate_series(0, $2::int - 1) AS partition
ON CONFLICT DO NOTHING
