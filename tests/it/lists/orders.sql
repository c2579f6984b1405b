-- Several orders share a second, with and without a fraction.
INSERT INTO order_rows (key, version, data, customer, status, ordered_at)
SELECT key, version, data, data ->> 'customer', data ->> 'status', rtrim(data ->> 'ordered_at', 'Z')
FROM (SELECT
    'o-' || (n * 7919) % {rows} AS key,
    n AS version,
    json_build_object(
        'customer', 'c-' || n % 5,
        'lines', '[]'::json,
        'status', (ARRAY['placed', 'confirmed', 'rejected', 'cancelled'])[1 + n % 4],
        'total_cents', n,
        'ordered_at', '1997-01-01T00:00:' || lpad(((n * 31) % 7)::text, 2, '0')
            || (ARRAY['Z', '.5Z', '.25Z', '.125Z', '.51Z'])[1 + (n * 17) % 13 % 5]
    ) AS data
FROM generate_series(1, {rows}) AS n) AS orders
ON CONFLICT DO NOTHING
