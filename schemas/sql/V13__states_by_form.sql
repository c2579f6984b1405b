-- States of aggregates, as `snapshots` has them, by the form in which each build writes them: while two builds run, each
-- keeps its own, and the next one's are made before it is there. Builds of before go on with `snapshots`, which a later
-- migration drops.
CREATE TABLE state_snapshots (
    form smallint NOT NULL,
    aggregate text NOT NULL,
    version bigint NOT NULL,
    state bytea NOT NULL,
    PRIMARY KEY (form, aggregate)
);

ALTER TABLE state_snapshots ALTER COLUMN state SET STORAGE EXTERNAL;

-- When a projector last said that its build reads and writes a form. A form that nobody used for a week is dropped.
CREATE TABLE snapshot_forms (
    form smallint PRIMARY KEY,
    used_at timestamptz NOT NULL
);
