INSERT INTO log_partitions (partition, nonce)
SELECT * FROM unnest($1::int[], $2::bigint[])
ON CONFLICT (partition) DO NOTHING
