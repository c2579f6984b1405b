-- Identity of each partition: the nonce of the claim at its offset 0, as the bits of a signed number.
CREATE TABLE log_partitions (
    partition int PRIMARY KEY,
    nonce bigint NOT NULL
);

-- How far each view was folded in each partition: the state of the reader's rule. Moved only on condition that it
-- still holds what its writer read, in the transaction that writes the view.
CREATE TABLE checkpoints (
    view text NOT NULL,
    partition int NOT NULL,
    next_offset bigint NOT NULL,
    epoch_claim bigint NOT NULL,
    epoch_nonce bigint NOT NULL,
    last_seq bigint NOT NULL,
    last_counted bigint NOT NULL,
    PRIMARY KEY (view, partition)
);

-- Fed by one aggregate each: a row's version is the aggregate's. The type is json, which keeps the bytes as written,
-- so that every reader serves the same.
CREATE TABLE product_rows (
    key text PRIMARY KEY,
    version bigint NOT NULL,
    data json NOT NULL
);

CREATE TABLE order_rows (
    key text PRIMARY KEY,
    version bigint NOT NULL,
    data json NOT NULL
);

-- Fed by many aggregates: one row per key and partition, so that each row has one writer; summed when read. The
-- version of a part counts the events folded into it.
CREATE TABLE customer_parts (
    key text NOT NULL,
    partition int NOT NULL,
    version bigint NOT NULL,
    orders bigint NOT NULL,
    units bigint NOT NULL,
    amount_cents bigint NOT NULL,
    first_order_at timestamptz NOT NULL,
    last_order_at timestamptz NOT NULL,
    PRIMARY KEY (key, partition)
);

CREATE TABLE revenue_parts (
    key text NOT NULL,
    partition int NOT NULL,
    version bigint NOT NULL,
    orders bigint NOT NULL,
    units bigint NOT NULL,
    amount_cents bigint NOT NULL,
    PRIMARY KEY (key, partition)
);

-- Every event by aggregate and version.
CREATE TABLE journal (
    aggregate text NOT NULL,
    version bigint NOT NULL,
    type text NOT NULL,
    data json NOT NULL,
    at timestamptz NOT NULL,
    partition int NOT NULL,
    "offset" bigint NOT NULL,
    command_id text NOT NULL,
    cause text,
    trace text,
    PRIMARY KEY (aggregate, version)
);

-- What readers see of every view, each with the same three columns.
CREATE VIEW view_product AS SELECT key, version, data FROM product_rows;

CREATE VIEW view_order AS SELECT key, version, data FROM order_rows;

CREATE VIEW view_customer AS
SELECT
    key,
    version,
    (
        SELECT row_to_json(fields)
        FROM (
            SELECT
                orders,
                units,
                amount_cents,
                -- As `schemas::time` writes it: a fraction only where there is one.
                rtrim(rtrim(to_char(first_at, 'YYYY-MM-DD"T"HH24:MI:SS.MS'), '0'), '.') || 'Z' AS first_order_at,
                rtrim(rtrim(to_char(last_at, 'YYYY-MM-DD"T"HH24:MI:SS.MS'), '0'), '.') || 'Z' AS last_order_at
        ) AS fields
    ) AS data
FROM (
    SELECT
        key,
        sum(version)::bigint AS version,
        sum(orders)::bigint AS orders,
        sum(units)::bigint AS units,
        sum(amount_cents)::bigint AS amount_cents,
        min(first_order_at) AT TIME ZONE 'UTC' AS first_at,
        max(last_order_at) AT TIME ZONE 'UTC' AS last_at
    FROM customer_parts
    GROUP BY key
) AS sums;

CREATE VIEW view_revenue AS
SELECT
    key,
    version,
    (SELECT row_to_json(fields) FROM (SELECT orders, units, amount_cents) AS fields) AS data
FROM (
    SELECT
        key,
        sum(version)::bigint AS version,
        sum(orders)::bigint AS orders,
        sum(units)::bigint AS units,
        sum(amount_cents)::bigint AS amount_cents
    FROM revenue_parts
    GROUP BY key
) AS sums;
