-- Records that a view could not take, and all later ones of the same aggregate, in order: the rest of the view goes on.
-- `reason`: of the first. `record`: as it is in the log.
CREATE TABLE parked (
    view text NOT NULL,
    aggregate text NOT NULL,
    "offset" bigint NOT NULL,
    partition int NOT NULL,
    version bigint NOT NULL,
    reason text,
    at timestamptz NOT NULL DEFAULT now(),
    record bytea NOT NULL,
    PRIMARY KEY (view, aggregate, "offset")
);

-- What of it was given up, by an operator: the rows lack it until the view is rebuilt.
CREATE TABLE discarded (
    view text NOT NULL,
    aggregate text NOT NULL,
    partition int NOT NULL,
    records bigint NOT NULL,
    first_version bigint NOT NULL,
    last_version bigint NOT NULL,
    reason text,
    parked_at timestamptz NOT NULL,
    at timestamptz NOT NULL DEFAULT now()
);

-- Moves whenever somebody else than the projector that folds a partition changes what it folds on.
ALTER TABLE checkpoints ADD COLUMN revision bigint NOT NULL DEFAULT 0;
