-- The log's identity and its number of partitions, once the projector has folded its first record.
SELECT nonce, (SELECT count(*) FROM checkpoints WHERE view = $1) FROM log_partitions WHERE partition = 0
