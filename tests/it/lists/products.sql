-- Keys in an unrelated order; some are prefixes of others.
INSERT INTO product_rows (key, version, price_cents, discontinued, available, data)
SELECT
    'p-' || (n * 7919) % {rows},
    n,
    (n * 31) % 97,
    n % 5 = 0,
    n % 50,
    json_build_object(
        'name', 'A CD', 'price_cents', (n * 31) % 97, 'stock', n, 'available', n % 50, 'reserved', 0, 'sold', 0,
        'discontinued', n % 5 = 0
    )
FROM generate_series(1, {rows}) AS n
ON CONFLICT DO NOTHING
