-- States of aggregates at some version, so that the write tier need not fold a long history from its beginning. Each
-- is only a shortcut: the journal, read on from its version, says what is true now. A form that a build does not read
-- is as good as none.
CREATE TABLE snapshots (
    aggregate text PRIMARY KEY,
    form smallint NOT NULL,
    version bigint NOT NULL,
    state bytea NOT NULL
);

-- A state that is compressed already, or small: do not try.
ALTER TABLE snapshots ALTER COLUMN state SET STORAGE EXTERNAL;

-- Which keys took effect within the window: a hash of aggregate and key, and what of the answer the journal does not
-- tell: its events are the last so many up to the version. Partitions by time, made and dropped by the projector.
CREATE TABLE repeats (
    key uuid NOT NULL,
    at timestamptz NOT NULL,
    partition int NOT NULL,
    "offset" bigint NOT NULL,
    fingerprint bigint NOT NULL,
    version bigint NOT NULL,
    events smallint NOT NULL
) PARTITION BY RANGE (at);

CREATE INDEX repeats_key ON repeats (key);

-- What a new owner must know of the records before its checkpoint: the time of the last one, and the latest time that
-- a key of them told, in milliseconds since 1970. Unknown for what was folded before: as late as a key could be.
ALTER TABLE checkpoints
    ADD COLUMN last_at_ms bigint NOT NULL DEFAULT 0,
    ADD COLUMN max_key_ms bigint NOT NULL DEFAULT (extract(epoch FROM now()) * 1000)::bigint + 120000;

ALTER TABLE checkpoints ALTER COLUMN max_key_ms SET DEFAULT 0;
