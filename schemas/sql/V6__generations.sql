-- A view that was folded anew from the log's beginning is another generation. `fold`: the form of the fold that made the
-- rows; a build whose own is another one does not fold them further.
ALTER TABLE checkpoints
    ADD COLUMN generation int NOT NULL DEFAULT 1,
    ADD COLUMN fold int NOT NULL DEFAULT 1;
