SELECT view, partition, next_offset, epoch_claim, epoch_nonce, last_seq, last_counted
FROM checkpoints
