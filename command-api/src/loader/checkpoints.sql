SELECT partition, next_offset, epoch_claim, epoch_nonce, last_seq, last_counted, last_at_ms, max_key_ms
FROM checkpoints
WHERE view = $1
