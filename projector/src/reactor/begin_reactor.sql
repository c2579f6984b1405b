-- Sets the checkpoints at which an operator lets the reactors begin. Changes no row if a reactor has begun already.
UPDATE checkpoints AS c
SET next_offset = told.next_offset,
    epoch_claim = told.epoch_claim,
    epoch_nonce = told.epoch_nonce,
    last_seq = told.last_seq,
    last_counted = told.last_counted,
    revision = c.revision + 1
FROM unnest($2::int[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[]) AS told (
    partition, next_offset, epoch_claim, epoch_nonce, last_seq, last_counted
)
WHERE c.view = $1
  AND c.partition = told.partition
  AND NOT EXISTS (SELECT FROM checkpoints WHERE view = $1 AND (next_offset > 0 OR revision > 0))
