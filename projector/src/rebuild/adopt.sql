-- Replaces the live checkpoints ($1) with those of the next rows ($2), which are at the same offsets or ahead.
UPDATE checkpoints AS live
SET generation = live.generation + 1,
    revision = live.revision + 1,
    fold = next.fold,
    next_offset = next.next_offset,
    epoch_claim = next.epoch_claim,
    epoch_nonce = next.epoch_nonce,
    last_seq = next.last_seq,
    last_counted = next.last_counted,
    counted = next.counted,
    counted_hash = next.counted_hash,
    counted_from = next.counted_from,
    last_at_ms = greatest(live.last_at_ms, next.last_at_ms),
    max_key_ms = greatest(live.max_key_ms, next.max_key_ms)
FROM checkpoints AS next
WHERE live.view = $1 AND next.view = $2 AND next.partition = live.partition
