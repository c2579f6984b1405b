INSERT INTO sale_rows (key, version, data, product, status, opens_at)
SELECT key, version, data, data ->> 'product', data ->> 'status', rtrim(data ->> 'opens_at', 'Z')
FROM (SELECT
    's-' || (n * 7919) % {rows} AS key,
    n AS version,
    json_build_object(
        'product', 'cd-' || n % 5,
        'status', (ARRAY['scheduled', 'open', 'closed'])[1 + n % 3],
        'opens_at', '1997-01-01T00:00:' || lpad(((n * 31) % 7)::text, 2, '0') || (ARRAY['Z', '.5Z', '.25Z'])[1 + n % 4 % 3]
    ) AS data
FROM generate_series(1, {rows}) AS n) AS sales
ON CONFLICT DO NOTHING
