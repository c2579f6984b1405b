SELECT partition, next_offset, epoch_claim, epoch_nonce, last_seq, last_counted
FROM checkpoints
WHERE view = $1
ORDER BY partition
