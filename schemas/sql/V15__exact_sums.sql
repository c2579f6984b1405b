-- Sums of units and money have no largest value: what many orders add up to may pass what 64 bits hold. The rows that a
-- rebuild is making, or has kept, are made of the same columns.
DROP VIEW view_customer;
DROP VIEW view_revenue;
DROP VIEW view_revenue_by_minute;
DROP VIEW view_best_sellers;

DO $$
DECLARE
    sums text;
BEGIN
    FOR sums IN
        SELECT name || ending
        FROM unnest(ARRAY['customer_parts', 'revenue_parts', 'revenue_by_minute_parts', 'best_sellers_rows']) AS name,
            unnest(ARRAY['', '_next', '_kept']) AS ending
        WHERE to_regclass(name || ending) IS NOT NULL
    LOOP
        EXECUTE format('ALTER TABLE %I ALTER COLUMN units TYPE numeric, ALTER COLUMN amount_cents TYPE numeric', sums);
    END LOOP;
END
$$;

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
        sum(units) AS units,
        sum(amount_cents) AS amount_cents,
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
        sum(units) AS units,
        sum(amount_cents) AS amount_cents
    FROM revenue_parts
    GROUP BY key
) AS sums;

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
        sum(units) AS units,
        sum(amount_cents) AS amount_cents
    FROM revenue_by_minute_parts
    GROUP BY key
) AS sums;

CREATE VIEW view_best_sellers AS
SELECT
    key,
    version,
    (SELECT row_to_json(fields) FROM (SELECT key AS product, units, amount_cents) AS fields) AS data
FROM best_sellers_rows;
