SELECT view, partition, next_offset, epoch_claim, epoch_nonce, last_seq, last_counted, counted, counted_hash, counted_from,
    last_at_ms, max_key_ms, generation, revision, fold
FROM checkpoints
