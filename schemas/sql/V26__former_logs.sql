-- Logs that this one was copied from, by the nonce of their first claim, and the offsets at which the copies ended: whoever
-- shows these partitions that far shows everything that a token of the former log names.
CREATE TABLE former_logs (
    nonce bigint NOT NULL,
    -- Of this log.
    partition int NOT NULL,
    "offset" bigint NOT NULL,
    PRIMARY KEY (nonce, partition)
);

GRANT SELECT ON former_logs TO stampede_query_api;
