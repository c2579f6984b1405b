SELECT FROM checkpoints WHERE view = 'reactor' FOR UPDATE;
INSERT INTO checkpoints (view, partition, next_offset, epoch_claim, epoch_nonce, last_seq, last_counted)
SELECT 'reactor-taken', partition, next_offset, epoch_claim, epoch_nonce, last_seq, last_counted
FROM checkpoints
WHERE view = 'reactor'
ON CONFLICT DO NOTHING;
UPDATE checkpoints AS reactor
SET next_offset = journal.next_offset,
    epoch_claim = journal.epoch_claim,
    epoch_nonce = journal.epoch_nonce,
    last_seq = journal.last_seq,
    last_counted = journal.last_counted,
    revision = reactor.revision + 1
FROM checkpoints AS journal
WHERE reactor.view = 'reactor' AND journal.view = 'journal' AND journal.partition = reactor.partition
  AND reactor.next_offset < journal.next_offset;
UPDATE parked SET view = 'reactor-taken' WHERE view = 'reactor';
UPDATE deadlines SET leased_until = 'infinity';
