-- Sales, and sums of what was sold.

CREATE TABLE sale_rows (
    key text PRIMARY KEY,
    version bigint NOT NULL,
    data json NOT NULL,
    product text COLLATE "C" GENERATED ALWAYS AS (data ->> 'product') STORED,
    status text COLLATE "C" GENERATED ALWAYS AS (data ->> 'status') STORED,
    opens_at text COLLATE "C" GENERATED ALWAYS AS (rtrim(data ->> 'opens_at', 'Z')) STORED
) WITH (fillfactor = 50);

CREATE INDEX sale_rows_opens_at ON sale_rows (opens_at, key);
CREATE INDEX sale_rows_status_opens_at ON sale_rows (status, opens_at, key);
CREATE INDEX sale_rows_product_opens_at ON sale_rows (product, opens_at, key);

CREATE VIEW view_sale AS SELECT key, version, data FROM sale_rows;

CREATE TABLE revenue_by_minute_parts (LIKE revenue_parts INCLUDING ALL);

CREATE VIEW view_revenue_by_minute AS
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
    FROM revenue_by_minute_parts
    GROUP BY key
) AS sums;

-- One row a product, which the partitions of its sales add to as well as its own: an index has no sums of parts.
CREATE TABLE best_sellers_rows (
    key text PRIMARY KEY,
    version bigint NOT NULL,
    units bigint NOT NULL,
    amount_cents bigint NOT NULL
);

CREATE INDEX best_sellers_rows_units ON best_sellers_rows (units, key);
CREATE INDEX best_sellers_rows_amount_cents ON best_sellers_rows (amount_cents, key);

CREATE VIEW view_best_sellers AS
SELECT
    key,
    version,
    (SELECT row_to_json(fields) FROM (SELECT key AS product, units, amount_cents) AS fields) AS data
FROM best_sellers_rows;

-- Only of products on sale with 20 units or fewer: of all others the column is null, and stays so from one
-- reservation to the next.
ALTER TABLE product_rows ADD COLUMN low_available bigint GENERATED ALWAYS AS (
    CASE
        WHEN (data ->> 'available')::bigint <= 20 AND NOT (data ->> 'discontinued')::boolean
            THEN (data ->> 'available')::bigint
    END
) STORED;

CREATE INDEX product_rows_low_available ON product_rows (low_available, key) WHERE low_available IS NOT NULL;

CREATE VIEW low_stock_rows AS
SELECT key, version, low_available AS available FROM product_rows WHERE low_available IS NOT NULL;

CREATE VIEW view_low_stock AS
SELECT
    key, version, (SELECT row_to_json(fields) FROM (SELECT key AS product, available) AS fields) AS data
FROM low_stock_rows;

-- What is to happen at a time unless it is called off. `kind` and `aggregate` name it: setting it again moves it.
CREATE TABLE deadlines (
    kind text NOT NULL,
    aggregate text NOT NULL,
    due_at timestamptz NOT NULL,
    -- The event that set it.
    cause text NOT NULL,
    -- Whoever fires it has it for so long.
    leased_until timestamptz NOT NULL DEFAULT '-infinity',
    PRIMARY KEY (kind, aggregate)
);

CREATE INDEX deadlines_due_at ON deadlines (due_at);
