-- How many records counted for a view in a partition from `counted_from` on, and the hash of them, as the bits of a
-- signed number: `schemas::chain::Tally`. What was folded before there were tallies is in none.
ALTER TABLE checkpoints
    ADD COLUMN counted bigint NOT NULL DEFAULT 0,
    ADD COLUMN counted_hash bigint NOT NULL DEFAULT 0,
    ADD COLUMN counted_from bigint NOT NULL DEFAULT 0;

UPDATE checkpoints SET counted_from = next_offset;
