INSERT INTO customer_parts (key, partition, version, orders, units, amount_cents, first_order_at, last_order_at)
SELECT 'c-' || n, partition, 1, 1, 1, n, '1997-01-01T00:00:00Z', '1997-01-02T00:00:00Z'
FROM generate_series(1, {rows}) AS n, generate_series(0, 2) AS partition
