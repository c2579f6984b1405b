-- A compare-and-set of many rows. The division fails, and with it the transaction, unless every one was as expected.
WITH moved AS (
    UPDATE checkpoints AS c
    SET next_offset = m.next_offset,
        epoch_claim = m.epoch_claim,
        epoch_nonce = m.epoch_nonce,
        last_seq = m.last_seq,
        last_counted = m.last_counted,
        counted = m.counted,
        counted_hash = m.counted_hash,
        last_at_ms = greatest(c.last_at_ms, m.last_at_ms),
        max_key_ms = greatest(c.max_key_ms, m.max_key_ms)
    FROM unnest(
        $1::text[], $2::int[], $3::bigint[], $4::bigint[],
        $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[],
        $12::bigint[], $13::bigint[], $15::bigint[]
    ) AS m (
        view, partition, old_next, old_nonce,
        next_offset, epoch_claim, epoch_nonce, last_seq, last_counted,
        counted, counted_hash, last_at_ms, max_key_ms, revision
    )
    WHERE c.view = m.view
      AND c.partition = m.partition
      AND c.next_offset = m.old_next
      AND c.epoch_nonce = m.old_nonce
      AND c.revision = m.revision
    RETURNING 1
)
SELECT 1 / (count(*) = $14::bigint)::int FROM moved
