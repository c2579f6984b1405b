INSERT INTO former_logs (nonce, partition, "offset")
SELECT former.nonce, ends.partition - 1, ends."offset"
FROM unnest($1::bigint[]) AS former (nonce), unnest($2::bigint[]) WITH ORDINALITY AS ends ("offset", partition)
ON CONFLICT DO NOTHING
