-- Partitions in which the live checkpoint ($1) and the next one ($2) differ.
SELECT live.partition
FROM checkpoints AS live
LEFT JOIN checkpoints AS next ON next.view = $2 AND next.partition = live.partition
WHERE live.view = $1
  AND (
      (next.next_offset, next.epoch_claim, next.epoch_nonce, next.last_seq, next.last_counted)
          IS DISTINCT FROM (live.next_offset, live.epoch_claim, live.epoch_nonce, live.last_seq, live.last_counted)
      -- A tally lacks records that were folded before tallies existed.
      OR live.counted_from = 0 AND (next.counted, next.counted_hash) IS DISTINCT FROM (live.counted, live.counted_hash)
  )
ORDER BY live.partition
