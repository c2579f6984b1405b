-- The last report of each running instance about itself. An unlogged table would save the write-ahead log a row every few
-- seconds, and could not be read, or copied by a backup, on a replica.
CREATE TABLE instances (
    instance text PRIMARY KEY CHECK (length(instance) <= 300),
    service text NOT NULL CHECK (length(service) <= 100),
    seen timestamptz NOT NULL DEFAULT now(),
    -- JSON, of which each build reads the members that it knows.
    report text NOT NULL CHECK (octet_length(report) <= 65536)
);

-- Each instance keeps its own row, and removes those of instances that ended without removing theirs.
GRANT SELECT, INSERT, UPDATE, DELETE ON instances TO stampede_command_api, stampede_query_api, stampede_projector;

-- For the time since when records are parked.
GRANT SELECT (at) ON parked TO stampede_query_api;
