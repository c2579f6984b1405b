-- Copies the live checkpoints ($1) under the name of the kept ones ($2).
INSERT INTO checkpoints (
    view, partition, next_offset, epoch_claim, epoch_nonce, last_seq, last_counted,
    counted, counted_hash, counted_from, last_at_ms, max_key_ms, generation, fold
)
SELECT
    $2, partition, next_offset, epoch_claim, epoch_nonce, last_seq, last_counted,
    counted, counted_hash, counted_from, last_at_ms, max_key_ms, generation, fold
FROM checkpoints
WHERE view = $1
