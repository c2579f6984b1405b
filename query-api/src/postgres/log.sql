-- Identity of the log and its number of partitions; empty until the projector has folded the first record.
SELECT nonce, (SELECT count(*) FROM checkpoints WHERE view = $1) FROM log_partitions WHERE partition = 0
