INSERT INTO sale_rows (key, version, data)
SELECT
    's-' || (n * 7919) % {rows},
    n,
    json_build_object(
        'product', 'cd-' || n % 5,
        'status', (ARRAY['scheduled', 'open', 'closed'])[1 + n % 3],
        'opens_at', '1997-01-01T00:00:' || lpad(((n * 31) % 7)::text, 2, '0') || (ARRAY['Z', '.5Z', '.25Z'])[1 + n % 4 % 3]
    )
FROM generate_series(1, {rows}) AS n
ON CONFLICT DO NOTHING
